"""Evaluation on held-out records: rewards of greedy or sampled completions, or mean loss of answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from archon_core.contracts.data import Dataset
from archon_core.contracts.loss import Loss
from archon_core.contracts.rollout import GenerationConfig, InferenceEngine
from archon_core.ranks.ranks import DataRanks
from archon_core.seeding import derive_seed
from archon_rl.collector.group import Group
from archon_rl.collector.sampling import DROPPED, WORKFLOW_FAILED
from archon_rl.collector.window import Settled
from archon_rl.datasets.placed_record import read_placed
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.pass_at_k import mean_pass_at_k
from archon_rl.text_encoding import TextEncoder, supervised_batch
from archon_rl.trainer.failures import FailureJudge
from archon_rl.trainer.rollout_batch import sample
from archon_rl.trainer.sampling_rounds import WorkflowRounds
from archon_rl.trainer.scoring import FAILED, Scorer
from archon_rl.trainer.settled_groups import judge_groups, mean_facts
from archon_rl.trainer.sharing import ONE_RANK, SharedEngine

EVAL = "eval/"
EVAL_REWARD = "eval/reward"
EVAL_PASS = "eval/pass"
EVAL_LOSS = "eval/loss"
EVAL_FAILED = "eval/reward_failed"
"""Completions without a reward, if there are any."""


def evaluate_reward(
    engine: InferenceEngine,
    encoder: TextEncoder,
    dataset: Dataset,
    scorer: Scorer,
    options: GenerationConfig,
    *,
    limit: int | None = None,
    seed: int = 0,
    pass_above: float = 0.0,
    data_ranks: DataRanks = ONE_RANK,
) -> dict[str, float]:
    """Raw rewards of completions of the first ``limit`` records.

    Completions without a reward are left out of the mean, counted, and do not pass.

    Args:
        options: sampling options, greedy or not.
        seed: the run's seed. All evaluations draw the same random numbers.
        pass_above: a completion passes if its reward is above this.
        data_ranks: divide the records among them.

    Returns:
        ``eval/reward``: the mean, for one completion per record. For k completions per record, ``eval/reward_avg@k``:
        the mean over all, and ``eval/pass@j`` for powers of two j up to k and for k.

    Raises:
        RewardError: as ``Scorer`` does.
    """
    records = [read_placed(dataset, index) for index in range(evaluated_size(dataset, limit))]
    rollout = sample(engine, encoder, records, options, evaluation_seeds(seed), data_ranks)
    scores = scorer(rollout, data_ranks, when="Evaluation")
    mean, n_failed = float(scores.values.double().mean()), len(scores.failures)
    failed = {EVAL_FAILED: float(n_failed)} if n_failed else {}
    n_samples = options.n_samples
    if n_samples == 1:
        return {EVAL_REWARD: mean, **failed}
    passed = [sum(not one.failed and one.value > pass_above for one in group) for group in scores.outcomes]
    return {
        f"{EVAL_REWARD}_avg@{n_samples}": mean,
        **{f"{EVAL_PASS}@{k}": share for k, share in mean_pass_at_k(n_samples, passed).items()},
        **failed,
    }


def evaluate_workflow(
    run_workflow: WorkflowRounds,
    dataset: Dataset,
    judge: FailureJudge,
    *,
    limit: int | None = None,
    pass_above: float = 0.0,
) -> dict[str, float]:
    """Raw rewards of a workflow's trajectories for the first ``limit`` records.

    Records that the workflow left out, and those with a failure, are left out of the means.

    Args:
        run_workflow: with ``evaluation_seeds``, without a selection of groups.
        judge: explains failures.
        pass_above: a trajectory passes if its reward is above this.

    Returns:
        As ``evaluate_reward``; the means are over trajectories, and ``eval/pass@j`` exists if every record has one per
        sample. ``eval/NAME`` is the mean of a number that the workflow gives with its trajectories.

    Raises:
        RewardError: too many failures.
    """
    records = [read_placed(dataset, index) for index in range(evaluated_size(dataset, limit))]
    settled = run_workflow(records).values()
    return group_metrics(settled, judge, n_samples=run_workflow.sampler.n_samples, pass_above=pass_above)


def group_metrics(
    settled: Collection[Settled[Group]], judge: FailureJudge, *, n_samples: int, pass_above: float = 0.0
) -> dict[str, float]:
    """The metrics of an evaluation; see ``evaluate_workflow``.

    Args:
        settled: the group of each held-out record, at least one.
        judge: explains failures.
        n_samples: samples per record.
        pass_above: a trajectory passes if its reward is above this.
    """
    counts = judge_groups(judge, settled, "Evaluation", has_rewards=True)
    rewards = [reward for one in settled for reward in one.group.rewards]
    n_failed = counts[FAILED] + counts[DROPPED[WORKFLOW_FAILED]]
    result = {EVAL_FAILED: n_failed} if n_failed else {}
    if not rewards:
        return result
    mean = sum(rewards) / len(rewards)
    result = {EVAL_REWARD if n_samples == 1 else f"{EVAL_REWARD}_avg@{n_samples}": mean, **result}
    groups = [one.group.rewards for one in settled if one.group.rewards]
    if n_samples > 1 and all(len(group) == n_samples for group in groups):
        passed = [sum(reward > pass_above for reward in group) for group in groups]
        result |= {f"{EVAL_PASS}@{k}": share for k, share in mean_pass_at_k(n_samples, passed).items()}
    return result | {f"{EVAL}{name}": value for name, value in mean_facts(settled).items()}


def evaluation_seeds(seed: int) -> Callable[[int, int], int]:
    """Seeds for the samples of an evaluation; functions of the run's seed and the sample alone."""
    return lambda place, number: derive_seed(seed, "evaluation", place, number)


def evaluate_loss(
    engine: SharedEngine,
    encoder: TextEncoder,
    dataset: Dataset,
    objective: Loss,
    *,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, float]:
    """``eval/loss``: the mean loss per answer token of the first ``limit`` records; independent of ``batch_size``."""
    total, weight = 0.0, 0.0
    for records in _batches(dataset, evaluated_size(dataset, limit), batch_size):
        batch = supervised_batch(encoder, records)
        n_tokens = float(batch.token_fields[LOSS_MASK].sum(dtype=torch.float64))
        total += engine.eval_batch(batch, objective).loss * n_tokens
        weight += n_tokens
    return {EVAL_LOSS: total / weight}


def evaluated_size(dataset: Dataset, limit: int | None) -> int:
    """The number of held-out records that an evaluation reads; ``limit`` is ``trainer.eval_size``."""
    return len(dataset) if limit is None else min(limit, len(dataset))


def _batches(dataset: Dataset, size: int, batch_size: int) -> Iterator[list[Mapping[str, Any]]]:
    for start in range(0, size, batch_size):
        yield [dataset[index] for index in range(start, min(start + batch_size, size))]
