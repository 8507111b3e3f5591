"""A loss over the micro-batches of a step: applied to each, normalised by the whole batch, added up over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.loss import Loss, LossSums
from archon_core.contracts.packed import OutputName
from archon_core.errors import DataError, TrainingError
from archon_core.ranks.ranks import DataRanks
from archon_engine.step.consistency import Share


class LossTotals:
    """Applies a loss to micro-batches and adds up what it returns, normalised by the weights of the whole batch.

    Args:
        loss: the loss, which returns sums per unit.
        whole: the combined share of all ranks; its weights divide the sums.
        ranks: the data ranks.

    Raises:
        DataError: a weight is not positive, for instance because no token has a target.
    """

    def __init__(self, loss: Loss, whole: Share, ranks: DataRanks) -> None:
        self._loss = loss
        self._weights = whole.weights
        self._ranks = ranks
        for unit, weight in self._weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise DataError(
                    f"loss weight of unit {unit!r}: found {weight} over a batch of {whole.n_sequences} sequences; it "
                    "must be positive; check that the batch's loss mask selects at least one token"
                )
        self._loss_sum: Tensor | None = None
        self._metric_sums: dict[str, Tensor] = {}
        self._has_graph = False

    def objective(self, outputs: Mapping[OutputName, Tensor], micro_batch: MicroBatch) -> Tensor:
        """The scalar to back-propagate for this micro-batch. Adds it to the totals."""
        # A zero with a graph: backward must run on every rank, and its zero gradients must join the sum over ranks.
        nothing = torch.stack([output[:0].sum() for output in outputs.values()]).sum()
        if not micro_batch.indices:
            return nothing
        sums = self._loss(outputs, micro_batch.batch)
        self._check_units(sums)
        value = torch.stack([term / self._weights[unit] for unit, term in sums.terms.items()]).sum()
        self._has_graph |= value.requires_grad
        self._loss_sum = value.detach() if self._loss_sum is None else self._loss_sum + value.detach()
        for name, (unit, metric) in sums.metrics.items():
            share = metric.detach() / self._weights[unit]
            self._metric_sums[name] = self._metric_sums.get(name, 0) + share
        # A loss may return a plain zero if it counts none of the tokens.
        return value if value.requires_grad else value + nothing

    def gather(self, *, differentiated: bool = False) -> tuple[float, dict[str, float]]:
        """The objective and the loss's metrics, summed over the micro-batches so far and all ranks. Collective.

        Args:
            differentiated: whether gradients of the objective were computed.

        Raises:
            TrainingError: gradients were computed, but on no rank does a term of the loss depend on the outputs.
        """
        own = 0.0 if self._loss_sum is None else float(self._loss_sum)
        metrics_here = {name: float(value) for name, value in self._metric_sums.items()}
        parts = self._ranks.gather((own, metrics_here, self._has_graph))
        if differentiated and not any(has_graph for _, _, has_graph in parts):
            raise TrainingError(
                f"loss {type(self._loss).__name__}: found no term with a gradient on any rank; compute at least one "
                "term from the outputs, without detaching them"
            )
        metrics: dict[str, float] = {}
        for _, values, _ in parts:
            for name, value in values.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return sum(loss for loss, _, _ in parts), metrics

    def _check_units(self, sums: LossSums) -> None:
        used = {*sums.terms, *(unit for unit, _ in sums.metrics.values())}
        missing = used - set(self._weights)
        if missing:
            raise DataError(
                f"loss {type(self._loss).__name__}: found sums in units {sorted(missing)}; its weights() declare "
                f"{sorted(self._weights)}; declare a weight for every unit that it uses"
            )
