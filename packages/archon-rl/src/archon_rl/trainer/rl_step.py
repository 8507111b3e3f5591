"""One step of reinforcement learning: rollout, reward, log-probabilities, values, advantages, updates, publication.

Every rank holds the whole batch. Generation, rewards, log-probabilities and updates are divided among the ranks inside
the functions that run them; every rank computes the rest redundantly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.contracts.rollout import InferenceEngine
from archon_core.seeding import derive_seed
from archon_rl.advantages import REWARDS
from archon_rl.algorithm import Algorithm
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.distillation import TEACHER_BASELINE, TEACHER_LOGPROBS, sequence_baseline
from archon_rl.losses.kl import REF_LOGPROBS, kl_estimate
from archon_rl.losses.policy_term import ADVANTAGES, LOGPROBS
from archon_rl.losses.proximal import PROX_FRACTION, PROX_LOGPROBS, VERSIONS, prox_fraction
from archon_rl.losses.value import RETURNS
from archon_rl.trainer.collecting import Collection
from archon_rl.trainer.critic_step import CriticStep
from archon_rl.trainer.dumping import TrajectoryDump
from archon_rl.trainer.minibatches import apply_filters, trained_minibatches
from archon_rl.trainer.roles import PendingOutputs, RoleEngines, begin_forward
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import PhaseClock, average

MOST_DETAILED = 16
"""Trajectories of a step whose log-probabilities under the trainer's weights are written with them."""


@dataclass(frozen=True)
class RLStep:
    """A callable that runs step n, counted from 0.

    Attributes:
        collection: provides the completions.
        algorithm: rewards to advantages to objective.
        engines: the actor, and the models that the algorithm needs beside it.
        rollout: samples with the actor's weights.
        seed: the run's seed.
        dump: writes trajectories; ``None`` for a run without files of them.
    """

    collection: Collection
    algorithm: Algorithm
    engines: RoleEngines
    rollout: InferenceEngine
    seed: int
    dump: TrajectoryDump | None = None

    @property
    def actor(self) -> SharedEngine:
        """The trained policy."""
        return self.engines.actor

    @cached_property
    def critic(self) -> CriticStep | None:
        """The critic's part of the step; ``None`` if the algorithm has no critic."""
        training, engine = self.algorithm.critic, self.engines.critic
        if training is None:
            return None
        assert engine is not None, "the algorithm needs a critic; RLTrainer builds one"
        return CriticStep(engine, training, self.seed)

    def __call__(self, step: int) -> dict[str, float]:
        """Run step ``step``; return its metrics."""
        clock = PhaseClock()
        collected = self.collection(step, clock)
        chosen = collected.batch
        if self.dump is not None:
            with clock("dump"):
                self.dump(step, collected.groups, self.trainer_logprobs(chosen))
        updates: list[StepStats] = []
        distances: dict[str, float] = {}
        learned: dict[str, float] = {}
        trains_actor = step >= self.algorithm.warmup_steps
        if len(chosen):
            # Models on their own ranks work while the actor's ranks go on.
            values = None if self.critic is None else self.critic.begin_values(chosen)
            with clock("logprobs"):
                chosen, distances = self.add_logprobs(chosen)
            if self.critic is not None and values is not None:
                with clock("values"):
                    chosen = self.critic.add_values(chosen, values)
            with clock("advantage"):
                if self.algorithm.needs_rewards:
                    chosen = self.add_advantages(chosen)
            if self.critic is not None:
                with clock("critic"):
                    finish = self.critic.begin_update(chosen, step)
            if trains_actor:
                with clock("update"):
                    updates = self.update(chosen, step)
            if self.critic is not None:
                with clock("critic"):
                    learned = finish()
        with clock("publish"):
            published = self.rollout.update_weights(self.actor.version)
            self.collection.published(step + 1)
        times = clock.metrics()
        left_out = self.algorithm.n_minibatches - len(updates) if trains_actor else 0
        return {
            **collected.statistics,
            **distances,
            **average(updates),
            **learned,
            **({"left_out_updates": left_out} if left_out else {}),
            **published,
            "version": self.actor.version,
            "tokens_per_second": collected.statistics["tokens"] / times["time/step"],
            **times,
        }

    def add_logprobs(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """The batch with the log-probabilities that the algorithm needs, and metrics of the rollout's distance to them.

        The metrics are means over completion tokens: ``rollout_logprob_gap``, the absolute difference to the trainer's
        log-probabilities, ``rollout_kl_ref``, the KL to the reference (k3), and ``rollout_kl_teacher``, the KL to the
        teacher (k1).
        """
        needed, request = self.algorithm.fields, OutputRequest(("logprobs",), self.algorithm.temperature, LOSS_MASK)
        mask, sampled = batch.token_fields[LOSS_MASK], batch.token_fields[LOGPROBS]
        fields: dict[str, Tensor] = {}
        distances: dict[str, float] = {}
        reference = self._begin(self.engines.ref, REF_LOGPROBS, batch, request)
        teacher = self._begin(self.engines.teacher, TEACHER_LOGPROBS, batch, request)
        if PROX_LOGPROBS in needed or self.algorithm.replace_logprobs:
            own = self.actor.forward_batch(batch, request)["logprobs"].to(sampled)
            fields[PROX_LOGPROBS if PROX_LOGPROBS in needed else LOGPROBS] = own
            distances["rollout_logprob_gap"] = _masked_mean((own - sampled).abs(), mask)
        if reference is not None:
            found = reference()["logprobs"].to(sampled)
            fields[REF_LOGPROBS] = found
            distances["rollout_kl_ref"] = _masked_mean(kl_estimate(sampled, found, "k3"), mask)
        if teacher is not None:
            found = teacher()["logprobs"].to(sampled)
            fields[TEACHER_LOGPROBS] = found
            if TEACHER_BASELINE in needed:
                fields[TEACHER_BASELINE] = sequence_baseline(sampled - found, batch)
            distances["rollout_kl_teacher"] = _masked_mean(kl_estimate(sampled, found, "k1"), mask)
        return batch.with_fields(fields), distances

    def trainer_logprobs(self, batch: Batch) -> dict[tuple[int, ...], list[float]]:
        """For some sequences, evenly spread by reward: token ids -> each token's log-probability under the actor's
        weights; 0 for the first token, which nobody predicts. Collective."""
        if not len(batch):
            return {}
        order = range(len(batch))
        if REWARDS in batch.sequence_fields:
            order = batch.sequence_fields[REWARDS].argsort(stable=True).tolist()
        shown = batch.select(order[:: -(-len(batch) // MOST_DETAILED)])
        found = self.actor.forward_batch(shown, OutputRequest(("logprobs",), self.algorithm.temperature))["logprobs"]
        ids, bounds = shown.input_ids.tolist(), shown.offsets
        values = found.tolist()
        return {tuple(ids[start:end]): [0.0, *values[start : end - 1]] for start, end in pairwise(bounds)}

    def _begin(self, engine: Any, field: str, batch: Batch, request: OutputRequest) -> PendingOutputs | None:
        """Start the pass of the model that computes ``field``; ``None`` if the algorithm does not read it."""
        if field not in self.algorithm.fields:
            return None
        assert engine is not None, f"the algorithm needs a model for {field}; RLTrainer builds one"
        return begin_forward(engine, batch, request)

    def add_advantages(self, batch: Batch) -> Batch:
        """The batch with its advantages, and with the returns if there is a critic."""
        estimator = self.algorithm.advantages
        assert estimator is not None, f"{self.algorithm.name} has no advantage estimator"
        if self.critic is None:
            return batch.with_fields({ADVANTAGES: estimator(batch)})
        advantages, returns = estimator.with_returns(batch)
        return batch.with_fields({ADVANTAGES: advantages, RETURNS: returns})

    def update(self, batch: Batch, step: int) -> list[StepStats]:
        """One optimizer step of the actor per mini-batch; skips mini-batches without a trained token."""
        filtered, seed = apply_filters(batch, self.algorithm.filters), derive_seed(self.seed, "minibatches", step)
        objective, start = self.algorithm.objective, self.actor.version
        return [
            self.actor.train_batch(self.prepare_update(minibatch, start), objective)
            for minibatch in trained_minibatches(filtered, self.algorithm.n_minibatches, seed)
        ]

    def prepare_update(self, minibatch: Batch, start: int) -> Batch:
        """The mini-batch with the fields that depend on the weights that its update changes.

        Args:
            start: version of the weights at the start of the step.
        """
        fields: dict[str, Tensor] = {}
        if PROX_FRACTION in self.algorithm.fields:
            fields[PROX_FRACTION] = prox_fraction(minibatch.token_fields[VERSIONS], start, self.actor.version)
        if self.algorithm.masks:
            outputs = self._outputs_before_update(minibatch, start)
            fields |= {mask.field: mask(outputs, minibatch) for mask in self.algorithm.masks}
        return minibatch.with_fields(fields)

    def _outputs_before_update(self, minibatch: Batch, start: int) -> dict[OutputName, Tensor]:
        names = tuple(dict.fromkeys(name for mask in self.algorithm.masks for name in mask.outputs))
        fields = minibatch.token_fields
        if names == ("logprobs",) and self.actor.version == start and PROX_LOGPROBS in fields:
            # The weights have not changed since the forward pass at the start of the step.
            return {"logprobs": fields[PROX_LOGPROBS]}
        outputs = self.actor.forward_batch(minibatch, OutputRequest(names, self.algorithm.temperature, LOSS_MASK))
        # The batch is where the rollout left it; outputs may be on the engine's device.
        return {name: value.to(minibatch.input_ids.device) for name, value in outputs.items()}


def _masked_mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].mean()) if mask.any() else 0.0
