"""The critic's part of a step: values of the batch before the update, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import OutputRequest
from archon_core.seeding import derive_seed
from archon_rl.algorithm import CriticTraining
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy_term import LOGPROBS
from archon_rl.losses.value import RETURNS, VALUES, explained_variance
from archon_rl.trainer.minibatches import apply_filters, train_minibatches
from archon_rl.trainer.remote_engine import RemoteEngine
from archon_rl.trainer.roles import PendingOutputs, begin_forward
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import average

PREFIX = "critic/"
"""Prefix of the names of the critic's metrics."""


@dataclass(frozen=True)
class CriticStep:
    """Computes values with the critic and trains it.

    Attributes:
        engine: the critic.
        training: how it learns.
        seed: the run's seed.
    """

    engine: SharedEngine | RemoteEngine
    training: CriticTraining
    seed: int

    def begin_values(self, batch: Batch) -> PendingOutputs:
        """Start to compute the critic's current values of a batch."""
        return begin_forward(self.engine, batch, OutputRequest(("values",)))

    def add_values(self, batch: Batch, values: PendingOutputs) -> Batch:
        """The batch with the values that ``begin_values`` computes."""
        return batch.with_fields({VALUES: values()["values"].to(batch.token_fields[LOGPROBS])})

    def begin_update(self, batch: Batch, step: int) -> Callable[[], dict[str, float]]:
        """Train on a batch with values and returns; a critic on its own ranks only starts.

        Returns:
            A function that gives the metrics, with ``PREFIX``. ``explained_variance`` covers all completions of the
            batch, with the values before the update.
        """
        fields, training = batch.token_fields, self.training
        explained = explained_variance(fields[VALUES], fields[RETURNS], fields[LOSS_MASK])
        learned = apply_filters(batch, training.filters)
        seed = derive_seed(self.seed, "critic minibatches", step)
        split = {"n_minibatches": training.n_minibatches, "seed": seed}
        if isinstance(self.engine, RemoteEngine):
            finish = self.engine.begin_training(learned, **split)
        else:
            updates = train_minibatches(self.engine, learned, training.objective, **split)

            def finish() -> list[StepStats]:
                return updates

        return lambda: self._metrics(finish(), explained)

    def _metrics(self, updates: Sequence[StepStats], explained: float) -> dict[str, float]:
        left_out = self.training.n_minibatches - len(updates)
        rows = {
            **average(updates),
            "explained_variance": explained,
            **({"left_out_updates": left_out} if left_out else {}),
        }
        return {f"{PREFIX}{name}": value for name, value in rows.items()}
