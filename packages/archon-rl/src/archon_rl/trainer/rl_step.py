"""One step of reinforcement learning: rollout, reward, log-probabilities, advantages, updates, publication.

Every rank holds the whole batch. Generation, rewards, log-probabilities and updates are divided among the ranks inside
the functions that run them; every rank computes the rest redundantly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.contracts.rollout import GenerationConfig, InferenceEngine
from archon_core.seeding import derive_seed
from archon_rl.algorithm import TRUNCATED, Algorithm
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.kl import REF_LOGPROBS, kl_estimate
from archon_rl.losses.policy_term import ADVANTAGES, LOGPROBS
from archon_rl.losses.proximal import PROX_FRACTION, PROX_LOGPROBS, VERSIONS, prox_fraction
from archon_rl.rewards.checking import NamedReward
from archon_rl.trainer.rollout_batch import COMPLETION_LENGTHS, build_batch, rollout_seeds, sample, score
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import PhaseClock, average
from archon_rl.trainer.task import Task


@dataclass(frozen=True)
class RLStep:
    """A callable that runs step n, counted from 0.

    Attributes:
        task: records and tokenizer.
        algorithm: rewards to advantages to objective.
        actor: the trained model.
        rollout: samples with the actor's weights.
        reference: the frozen reference model; ``None`` if the algorithm needs none.
        reward: scores completions.
        options: sampling options; the stop tokens include the end-of-text token.
        seed: the run's seed.
        needs_experts: require the routed experts of every completion (``rollout.return_routed_experts``).
    """

    task: Task
    algorithm: Algorithm
    actor: SharedEngine
    rollout: InferenceEngine
    reference: SharedEngine | None
    reward: NamedReward
    options: GenerationConfig
    seed: int
    needs_experts: bool = False

    def __call__(self, step: int) -> dict[str, float]:
        """Run step ``step``; return its metrics."""
        clock, ranks = PhaseClock(), self.actor.data_ranks
        records = self.task.records(step)
        with clock("rollout"):
            seeds = rollout_seeds(self.seed, step)
            rollout = sample(self.rollout, self.task.encoder, records, self.options, seeds, ranks)
        with clock("reward"):
            rewards = score(rollout, self.task.encoder, self.reward, ranks)
            lengths = torch.tensor([len(c.token_ids) for samples in rollout.completions for c in samples])
            batch = build_batch(rollout, self.algorithm.rewards(rewards, lengths), needs_experts=self.needs_experts)
            chosen = self.select(batch)
        updates: list[StepStats] = []
        distances: dict[str, float] = {}
        if len(chosen):
            with clock("logprobs"):
                chosen, distances = self.add_logprobs(chosen)
            with clock("advantage"):
                chosen = self.filter(self.add_advantages(chosen))
            with clock("update"):
                updates = self.update(chosen, step)
        with clock("publish"):
            published = self.rollout.update_weights(self.actor.version)
        times = clock.metrics()
        left_out = self.algorithm.n_minibatches - len(updates)
        return {
            **_rollout_metrics(batch, rewards),
            "selected": len(chosen) / len(batch),
            **distances,
            **average(updates),
            **({"left_out_updates": left_out} if left_out else {}),
            **published,
            "version": self.actor.version,
            "tokens_per_second": batch.n_tokens / times["time/step"],
            **times,
        }

    def add_logprobs(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """The batch with the log-probabilities that the algorithm needs, and metrics of the rollout's distance to them.

        The metrics are means over completion tokens: ``rollout_logprob_gap``, the absolute difference to the trainer's
        log-probabilities, and ``rollout_kl_ref``, the KL to the reference (k3).
        """
        needed, request = self.algorithm.fields, OutputRequest(("logprobs",), self.algorithm.temperature)
        mask, sampled = batch.token_fields[LOSS_MASK], batch.token_fields[LOGPROBS]
        fields: dict[str, Tensor] = {}
        distances: dict[str, float] = {}
        if PROX_LOGPROBS in needed or self.algorithm.replace_logprobs:
            own = self.actor.forward_batch(batch, request)["logprobs"].to(sampled)
            fields[PROX_LOGPROBS if PROX_LOGPROBS in needed else LOGPROBS] = own
            distances["rollout_logprob_gap"] = _masked_mean((own - sampled).abs(), mask)
        if REF_LOGPROBS in needed:
            assert self.reference is not None, "the algorithm needs a reference; RLTrainer builds one"
            reference = self.reference.forward_batch(batch, request)["logprobs"].to(sampled)
            fields[REF_LOGPROBS] = reference
            distances["rollout_kl_ref"] = _masked_mean(kl_estimate(sampled, reference, "k3"), mask)
        return batch.with_fields(fields), distances

    def add_advantages(self, batch: Batch) -> Batch:
        """The batch with its advantages."""
        assert self.algorithm.advantages is not None, f"{self.algorithm.name} has no advantage estimator"
        return batch.with_fields({ADVANTAGES: self.algorithm.advantages(batch)})

    def select(self, batch: Batch) -> Batch:
        """The sequences that the algorithm's selection keeps."""
        if self.algorithm.selection is None:
            return batch
        return batch.select(self.algorithm.selection(batch).nonzero()[:, 0].tolist())

    def filter(self, batch: Batch) -> Batch:
        """The batch with the loss mask cleared for sequences that a filter rejects."""
        mask = batch.token_fields[LOSS_MASK]
        for keep in self.algorithm.filters:
            mask = mask & keep(batch)[batch.sequence_ids]
        return batch.with_fields({LOSS_MASK: mask})

    def update(self, batch: Batch, step: int) -> list[StepStats]:
        """One optimizer step per mini-batch; skips mini-batches without a trained token."""
        minibatches = split_minibatches(
            batch, self.algorithm.n_minibatches, derive_seed(self.seed, "minibatches", step)
        )
        objective, start = self.algorithm.objective, self.actor.version
        return [
            self.actor.train_batch(self.prepare_update(minibatch, start), objective)
            for minibatch in minibatches
            if minibatch.token_fields[LOSS_MASK].any()
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
        outputs = self.actor.forward_batch(minibatch, OutputRequest(names, self.algorithm.temperature))
        # The batch is where the rollout left it; outputs may be on the engine's device.
        return {name: value.to(minibatch.input_ids.device) for name, value in outputs.items()}


def split_minibatches(batch: Batch, n: int, seed: int) -> list[Batch]:
    """A random split of the batch into ``n`` parts whose numbers of sequences differ by at most one."""
    if n == 1:
        return [batch]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    return [batch.select(part.tolist()) for part in order.tensor_split(n)]


def _rollout_metrics(batch: Batch, rewards: Tensor) -> dict[str, float]:
    fields = batch.sequence_fields
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "completion_tokens": float(fields[COMPLETION_LENGTHS].double().mean()),
        "truncated": float(fields[TRUNCATED].double().mean()),
        "tokens": batch.n_tokens,
    }


def _masked_mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].mean()) if mask.any() else 0.0
