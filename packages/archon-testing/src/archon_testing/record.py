"""What the oracle writes down of a run, and how it makes an engine do the run.

``measure`` works on every rank of a world, and every rank has a record of its own: gathered tensors that only one rank
looked at would not show copies that have drifted apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from archon_core.data.batch import Batch
from archon_core.protocols import Loss, StepStats
from archon_testing.batches import STEP_LENGTHS, deal, make_batch, undeal
from archon_testing.cases import Case
from archon_testing.engines import CLIP_TO, build_engine
from archon_testing.losses import oracle_loss


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        loss: the loss under that name, and each of its metrics.
        gradient_norm: before clipping.
        gradients: parameter -> its whole gradient, before clipping.
        weights: parameter -> the whole parameter after the step.
    """

    loss: Mapping[str, float]
    gradient_norm: float
    gradients: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Record:
    """A run of a case, as one rank has seen it.

    Attributes:
        steps: one per batch.
        outputs: name and time, such as ``logprobs after training`` -> [T] in the order of the whole batch.
        problems: what is wrong whatever the numbers are, such as ranks that report different losses.
    """

    steps: tuple[StepRecord, ...]
    outputs: Mapping[str, Tensor]
    problems: tuple[str, ...] = ()


def measure(case: Case, checkpoint: Path) -> Record:
    """Train on every batch of the oracle, from the weights in ``checkpoint``. Collective.

    Raises:
        ArchonError: as the engine does.
    """
    engine = build_engine(case, checkpoint)
    try:
        problems: list[str] = []
        loss = oracle_loss(critic=case.critic)
        batches = [_batch(case, engine.hf_config, step) for step in range(len(STEP_LENGTHS))]
        before = _outputs(engine, batches[0], loss, problems)
        steps = tuple(_train(engine, batch, loss, step, problems) for step, batch in enumerate(batches))
        after = _outputs(engine, batches[0], loss, problems)
    finally:
        engine.close()
    outputs = {f"{name} before training": values for name, values in before.items()}
    outputs |= {f"{name} after training": values for name, values in after.items()}
    return Record(steps, outputs, tuple(problems))


def _batch(case: Case, hf_config: Any, step: int) -> Batch:
    longest = getattr(hf_config, "max_position_embeddings", None) or max(STEP_LENGTHS[step])
    dtype = getattr(torch, case.dtype)
    return make_batch(step, vocab_size=hf_config.vocab_size, longest=longest, dtype=dtype, seed=case.seed)


def _share(engine: Any, batch: Batch) -> Batch:
    return batch.select(deal(len(batch), engine.data_ranks.size)[engine.data_ranks.rank])


def _train(engine: Any, batch: Batch, loss: Loss, step: int, problems: list[str]) -> StepRecord:
    stats: StepStats = engine.train_batch(_share(engine, batch), loss)
    norm = stats.gradient_norm
    assert norm is not None, "a training step has a norm"
    reported = {"loss": stats.loss, "gradient norm": norm, "tokens": stats.n_tokens, **stats.metrics}
    problems += _disagreements(engine, reported, step)
    if stats.n_tokens != batch.n_tokens:
        problems.append(f"step {step + 1} reports {stats.n_tokens} tokens of {batch.n_tokens}")
    parameters: Mapping[str, nn.Parameter] = engine.parameters
    problems += [f"step {step + 1} leaves the gradient of {name} a partial sum" for name in _partial(parameters)]
    # The engine clips in place; what it divided by is its own norm, right or wrong.
    unclip = max(norm / CLIP_TO, 1.0)
    gradients = {name: _whole_gradient(parameter) * unclip for name, parameter in parameters.items()}
    weights = {name: _whole(parameter.detach()).clone() for name, parameter in parameters.items()}
    return StepRecord({"loss": stats.loss, **stats.metrics}, norm, gradients, weights)


def _disagreements(engine: Any, reported: Mapping[str, float], step: int) -> Iterator[str]:
    """Numbers that are not the same, to the last bit, on every rank."""
    everywhere = engine.data_ranks.everyone.gather(dict(reported))
    for name in reported:
        values = [report[name] for report in everywhere]
        if len({value.hex() if isinstance(value, float) else value for value in values}) > 1:
            yield f"step {step + 1}: ranks report different values of {name}: {', '.join(map(repr, values))}"


def _partial(parameters: Mapping[str, nn.Parameter]) -> Iterator[str]:
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(placement.is_partial() for placement in gradient.placements):
            yield name


def _whole_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape, dtype=parameter.dtype)
    return _whole(parameter.grad)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _outputs(engine: Any, batch: Batch, loss: Loss, problems: list[str]) -> dict[str, Tensor]:
    """Per-token outputs [T] of the whole batch; those of this rank's own data rank are its own."""
    share, ranks = _share(engine, batch), engine.data_ranks
    own = engine.forward_batch(share, loss.request)
    everyone = ranks.everyone.gather((ranks.rank, share, own))
    shares: list[tuple[Batch, Mapping[str, Tensor]]] = [(share, own)] * ranks.size
    for data_rank, other, values in everyone:
        if data_rank != ranks.rank:
            shares[data_rank] = (other, values)
        elif any(not torch.equal(values[name], own[name]) for name in own):
            problems.append(f"ranks of data rank {data_rank} compute different {' and '.join(own)}")
    return {name: undeal([(part, values[name]) for part, values in shares], batch) for name in own}
