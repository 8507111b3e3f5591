"""One training step or evaluation over a batch: split, normalise, run, clip, update.

The weights that normalise a loss are summed over the whole batch, all ranks together, before the first forward pass,
so that neither the split into micro-batches nor that over ranks can enter the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine import StepStats
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import Runner
from archon_core.errors import DataError
from archon_core.ranks.ranks import DataRanks
from archon_engine.assembly.experts import ExpertBlocks
from archon_engine.assembly.tied_copies import TiedCopies
from archon_engine.data.micro_batch import build_micro_batch
from archon_engine.data.packing import plan_micro_batches
from archon_engine.nn.ulysses import ContextParallel
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.step.consistency import Share, agree
from archon_engine.step.grad_norm import clip_gradients, global_gradient_norm
from archon_engine.step.loss_totals import LossTotals


@dataclass(frozen=True)
class PipelineNeeds:
    """What a pipeline asks of the number of micro-batches.

    Attributes:
        at_least: with fewer, stages would never all work at once.
        divisor: it must be a multiple of this.
    """

    at_least: int
    divisor: int = 1

    def number_for(self, planned: int) -> int:
        """The least number that satisfies both, and is no less than ``planned``."""
        return math.ceil(max(planned, self.at_least) / self.divisor) * self.divisor


@dataclass(frozen=True)
class Splitter:
    """How this engine cuts a batch into micro-batches.

    Attributes:
        spec: the options ``mb_spec``.
        multiple: every micro-batch's tokens are padded to a multiple of this.
        at_least: and to no fewer than this.
        context: the ranks over which its tokens are cut; ``None`` when all stay here.
        pipeline: what a pipeline asks of the split; ``None`` without one.
        replays_routing: tokens go to the experts that the batch says, where it says so.
    """

    spec: MicroBatchSpec
    multiple: int = 1
    at_least: int = 0
    context: ContextParallel | None = None
    pipeline: PipelineNeeds | None = None
    replays_routing: bool = False

    def plan(self, batch: Batch) -> list[Sequence[int]]:
        """Which sequences of ``batch`` stand in which micro-batch; none is empty.

        Raises:
            DataError: the options do not allow it.
        """
        if not len(batch):
            return []
        plan = plan_micro_batches(
            batch.lengths,
            n_mbs=max(self.spec.n_mbs, self.pipeline.at_least if self.pipeline else 1),
            max_tokens_per_mb=self.spec.max_tokens_per_mb,
            granularity=self.spec.granularity,
            n_mbs_divisor=math.lcm(self.spec.n_mbs_divisor, self.pipeline.divisor if self.pipeline else 1),
            algorithm=self.spec.packing_algorithm,
        )
        return [indices for indices in plan if indices]

    def number_for(self, planned: int) -> int:
        """How many micro-batches all ranks run when none has planned more than ``planned``."""
        return planned if self.pipeline is None else self.pipeline.number_for(planned)

    def build(
        self, batch: Batch, plan: Sequence[Sequence[int]], request: OutputRequest, number: int
    ) -> list[MicroBatch]:
        """The micro-batches of ``plan``, and as many without sequences as make up ``number``: what a rank runs while
        others still have some. In a pipeline all of a step have one length."""
        at_least = self.at_least
        if self.pipeline is not None:
            at_least = max(at_least, *(sum(batch.lengths[i] for i in indices) for indices in plan), 0)
        return [
            build_micro_batch(
                batch,
                indices,
                request,
                multiple=self.multiple,
                at_least=at_least,
                context=self.context,
                replays_routing=self.replays_routing,
            )
            for indices in [*plan, *([()] * (number - len(plan)))]
        ]


@dataclass(frozen=True)
class Parts:
    """The parts that a step is made of, the same for every step of an engine.

    Attributes:
        split: cuts this rank's batch.
        runner: executes micro-batches.
        ranks: who has other sequences of the batch.
        vocab_size: ids that the model knows; ``None`` leaves them unchecked.
        pipeline: the processes that hold other parameters; ``None`` where all are here.
        tied: weights that two stages of a pipeline have a copy of; ``None`` where none has.
        experts: mixture-of-experts blocks; ``None`` for a model without.
    """

    split: Splitter
    runner: Runner
    ranks: DataRanks = field(default_factory=DataRanks)
    vocab_size: int | None = None
    pipeline: ProcessGroup | None = None
    tied: TiedCopies | None = None
    experts: ExpertBlocks | None = None

    def prepare(self, batch: Batch, request: OutputRequest, loss: Loss | None = None) -> tuple[list[MicroBatch], Share]:
        """This rank's micro-batches, as many on every rank, and the whole batch that they are part of. Collective.

        Raises:
            DataError: on every rank, when the batch of one cannot be split or has ids that the model does not know.
            Exception: on every rank, what the loss raises on one while it weighs its batch.
        """
        plan: list[Sequence[int]] = []
        share: Share | Exception
        try:
            self._check_ids(batch)
            plan = self.split.plan(batch)
            share = Share.of(batch, len(plan), loss)
        except Exception as error:
            share = error
        whole = agree(share, self.ranks)
        whole = replace(whole, n_micro_batches=self.split.number_for(whole.n_micro_batches))
        return self.split.build(batch, plan, request, whole.n_micro_batches), whole

    def _check_ids(self, batch: Batch) -> None:
        """One process would fail at such an id somewhere inside the model; vocabulary shards would take it for zero."""
        if self.vocab_size is None or not batch.n_tokens:
            return
        least, most = (int(bound) for bound in batch.input_ids.aminmax())
        if least < 0 or most >= self.vocab_size:
            raise DataError(
                f"batch: found token id {least if least < 0 else most}; the model's vocabulary has ids 0 to "
                f"{self.vocab_size - 1}; tokenize with the tokenizer that belongs to the model"
            )


def train_step(
    batch: Batch, loss: Loss, parts: Parts, *, optimizer: NamedOptimizer, step: int, max_gradient_norm: float
) -> StepStats:
    """Forward and backward over all micro-batches, then one optimizer update.

    Args:
        batch: this rank's sequences.
        loss: what to minimise.
        parts: how.
        optimizer: holds the parameters.
        step: number of this optimizer step, the first being 0.
        max_gradient_norm: clip to this global norm; 0 does not clip.

    Returns:
        Statistics of all ranks; ``skipped`` when the norm was not finite, in which case no weight and no state changed.

    Raises:
        DataError, TrainingError: the batch does not fit the options or the model, or the loss gives no gradient; on
            every rank alike.
    """
    micro_batches, whole = parts.prepare(batch, loss.request, loss)
    totals = LossTotals(loss, whole, parts.ranks)
    reports = None
    if parts.experts is not None:
        micro_batches, reports = parts.experts.with_batch_totals(micro_batches, whole)
    optimizer.zero_grad()
    parts.runner.train(micro_batches, totals.objective)
    if parts.tied is not None:
        parts.tied.sum_gradients()
    objective, metrics = totals.gather(differentiated=True)
    copies = {} if parts.tied is None else parts.tied.held
    logical = [parameter for name, parameter in optimizer.parameters.items() if name not in copies]
    norm = global_gradient_norm(logical, parts.pipeline)
    finite = bool(torch.isfinite(norm))
    learning_rate = optimizer.learning_rate(step)
    if finite:
        if max_gradient_norm > 0:
            clip_gradients(optimizer.parameters.values(), norm, max_gradient_norm)
        optimizer.step(learning_rate)
    if parts.experts is not None and reports is not None:
        metrics |= parts.experts.finish(reports, stepped=finite)
    return StepStats(
        loss=objective,
        gradient_norm=float(norm),
        learning_rate=learning_rate,
        skipped=not finite,
        n_micro_batches=whole.n_micro_batches,
        n_tokens=whole.n_tokens,
        metrics=metrics,
    )


def eval_step(batch: Batch, loss: Loss, parts: Parts) -> StepStats:
    """The loss and its metrics without gradients."""
    micro_batches, whole = parts.prepare(batch, loss.request, loss)
    totals = LossTotals(loss, whole, parts.ranks)
    with torch.no_grad():
        for micro_batch, outputs in parts.runner.forward(micro_batches):
            totals.objective(outputs, micro_batch)
    objective, metrics = totals.gather()
    return StepStats(
        loss=objective,
        gradient_norm=None,
        learning_rate=None,
        skipped=False,
        n_micro_batches=whole.n_micro_batches,
        n_tokens=whole.n_tokens,
        metrics=metrics,
    )


def forward_step(batch: Batch, request: OutputRequest, parts: Parts) -> dict[OutputName, Tensor]:
    """Per-token outputs [T] of this rank's ``batch``, in its order."""
    outputs: dict[OutputName, Tensor] = {}
    micro_batches, _ = parts.prepare(batch, request)
    for micro_batch, values in parts.runner.forward(micro_batches):
        places = _token_places(batch, micro_batch.indices)
        for name, value in values.items():
            whole = outputs.setdefault(name, value.new_zeros(batch.n_tokens, *value.shape[1:]))
            whole[places] = value
    return outputs


def _token_places(batch: Batch, indices: Sequence[int]) -> Tensor:
    spans = [torch.arange(batch.offsets[i], batch.offsets[i + 1]) for i in indices]
    return torch.cat([torch.empty(0, dtype=torch.int64), *spans]).to(batch.input_ids.device)
