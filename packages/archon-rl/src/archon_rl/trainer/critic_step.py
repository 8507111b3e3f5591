"""The critic's part of a step: values of the batch before the update, and the update."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.seeding import derive_seed
from archon_rl.algorithm import CriticTraining
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy_term import LOGPROBS
from archon_rl.losses.value import RETURNS, VALUES, explained_variance
from archon_rl.trainer.minibatches import apply_filters, trained_minibatches
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import average

PREFIX = "critic/"
"""Of the names of the critic's metrics."""


@dataclass(frozen=True)
class CriticStep:
    """Computes values with the critic and trains it.

    Attributes:
        engine: the critic.
        training: how it learns.
        seed: the run's seed.
    """

    engine: SharedEngine
    training: CriticTraining
    seed: int

    def add_values(self, batch: Batch) -> Batch:
        """The batch with the critic's current values."""
        values = self.engine.forward_batch(batch, OutputRequest(("values",)))["values"]
        return batch.with_fields({VALUES: values.to(batch.token_fields[LOGPROBS])})

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """Train on a batch with values and returns; return the metrics, with ``PREFIX``.

        ``explained_variance`` covers all completions of the batch, with the values before the update.
        """
        fields, training = batch.token_fields, self.training
        explained = explained_variance(fields[VALUES], fields[RETURNS], fields[LOSS_MASK])
        learned = apply_filters(batch, training.filters)
        seed = derive_seed(self.seed, "critic minibatches", step)
        minibatches = trained_minibatches(learned, training.n_minibatches, seed)
        updates = [self.engine.train_batch(minibatch, training.objective) for minibatch in minibatches]
        left_out = training.n_minibatches - len(updates)
        rows = {
            **average(updates),
            "explained_variance": explained,
            **({"left_out_updates": left_out} if left_out else {}),
        }
        return {f"{PREFIX}{name}": value for name, value in rows.items()}
