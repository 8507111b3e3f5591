"""Forward and backward passes of Megatron-Core over one batch: its loss, and this rank's parts of the gradients.

Sequences are padded on the right to the longest one, and pass in equal micro-batches, since Megatron packs sequences
only on GPUs. Padding has no targets, and no token sees the padding behind it.

Legend: B sequences of a micro-batch, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from archon_core.contracts.batch import Batch
from archon_testing.batches import MASK, PULL
from archon_testing.exports import read_files
from archon_testing.megatron_oracle.architecture import MegatronSizes
from archon_testing.megatron_oracle.model import build_model
from archon_testing.megatron_oracle.weight_places import HeldParameters, Place, held_by


@dataclass(frozen=True)
class PaddedBatch:
    """The micro-batches of a data rank.

    Attributes:
        ids: int64 [n, B, S].
        labels: int64 [n, B, S], the next token.
        weights: [n, B, S], of each token's loss; 0 for tokens that do not count.
        counted: bool [n, B, S], whether a token counts.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    counted: Tensor

    @classmethod
    def of(cls, batch: Batch, *, n_micro_batches: int, data_ranks: int, data_rank: int) -> PaddedBatch:
        """The share of a data rank. Sequences without targets fill up the last micro-batch."""
        longest, parts = max(batch.lengths), n_micro_batches * data_ranks
        each = -(-len(batch) // parts)

        def padded(values: Tensor) -> Tensor:
            rows = [pad(row, (0, longest - len(row))) for row in values.split(batch.lengths)]
            rows += [torch.zeros_like(rows[0])] * (parts * each - len(rows))
            return torch.stack(rows).view(data_ranks, n_micro_batches, each, longest)[data_rank]

        ids, counted = padded(batch.input_ids), padded(batch.token_fields[MASK]).bool()
        weights = padded(batch.token_fields[PULL]) * counted
        return cls(ids, ids.roll(-1, dims=-1), weights, counted)


@dataclass(frozen=True)
class GradientPart:
    """A part of a gradient under the name of the Hugging Face checkpoint."""

    place: Place
    values: Tensor


@dataclass(frozen=True)
class MegatronStep:
    """What one rank has after the backward pass.

    Attributes:
        loss: of the whole batch; ``None`` on ranks without the head.
        parts: of the gradients of this rank's parameters.
    """

    loss: float | None
    parts: tuple[GradientPart, ...]


def run_megatron(
    entries: Mapping[str, Any], sizes: MegatronSizes, batch: Batch, checkpoint: Path, n_micro_batches: int
) -> MegatronStep:
    """Run one batch through a new model, inside ``megatron_groups``. Collective.

    Args:
        entries: of the model's ``config.json``.
        sizes: of the parallel groups.
        batch: the whole batch.
        checkpoint: a folder with the weights.
        n_micro_batches: of each data rank; in a pipeline at least as many as stages.
    """
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    own = PaddedBatch.of(
        batch,
        n_micro_batches=n_micro_batches,
        data_ranks=sizes.data,
        data_rank=parallel_state.get_data_parallel_rank(),
    )
    model = build_model(entries, sizes, longest=own.ids.shape[-1])
    held = held_by(model.module, sizes)
    _load(model.module, held, read_files(checkpoint))
    losses = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=_micro_batches(own),
        model=[model],
        num_microbatches=n_micro_batches,
        seq_length=own.ids.shape[-1],
        micro_batch_size=own.ids.shape[1],
        forward_only=False,
    )
    loss = None
    if parallel_state.is_pipeline_last_stage():
        sums = torch.stack([torch.stack(pair) for pair in losses]).sum(0)
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        loss = float(sums[0] / sums[1])
    return MegatronStep(loss, tuple(_gradients(model.module, held)))


def _micro_batches(own: PaddedBatch) -> Iterator[PaddedBatch]:
    for fields in zip(own.ids, own.labels, own.weights, own.counted, strict=True):
        yield PaddedBatch(*fields)


def _forward_step(batches: Iterator[PaddedBatch], model: Any) -> tuple[Tensor, Any]:
    """Megatron's callback: the output of this stage, and the loss of the last one's."""
    own = next(batches)
    positions = torch.arange(own.ids.shape[1]).expand_as(own.ids)
    return model(own.ids, positions, None, labels=own.labels), partial(_loss, own)


def _loss(own: PaddedBatch, likelihoods: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Sum over tokens, number of tokens, and both for the report. ``likelihoods``: [B, S], negative logarithms."""
    loss, number = (likelihoods * own.weights).sum(), own.counted.sum()
    return loss, number.int(), (loss.detach().clone(), number.float())


@torch.no_grad()
def _load(model: Any, held: HeldParameters, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        for place in held.places(name, parameter):
            place.part(parameter).copy_(weights[place.name][place.box.slices])


def _gradients(model: Any, held: HeldParameters) -> Iterator[GradientPart]:
    for name, parameter in model.named_parameters():
        for place in held.places(name, parameter):
            yield GradientPart(place, place.part(parameter.main_grad).clone())
