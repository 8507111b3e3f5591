"""``Sampling``: how a run samples its completions, for training and for evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from archon_core.contracts.rollout import GenerationConfig, InferenceEngine
from archon_core.ranks.ranks import DataRanks
from archon_rl.agents.checks import runs_agents, uses_agents
from archon_rl.algorithm import Algorithm
from archon_rl.collector.reward_threads import RewardThreads, reward_threads
from archon_rl.collector.sampling import GroupSampler
from archon_rl.collector_options import has_servers, pace_of
from archon_rl.fingerprint import Fingerprint
from archon_rl.trainer.collecting import Collection
from archon_rl.trainer.evaluation import (
    evaluate_reward,
    evaluate_workflow,
    evaluated_size,
    evaluation_seeds,
    group_metrics,
)
from archon_rl.trainer.failures import FailureJudge
from archon_rl.trainer.reward_model import ModelScorer
from archon_rl.trainer.rollout_batch import rollout_seeds, sampling_options
from archon_rl.trainer.sampling_ahead import HeldOutSampling, SampleAhead
from archon_rl.trainer.sampling_now import SampleNow
from archon_rl.trainer.sampling_rounds import SampleRounds, WorkflowRounds
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.task import Task
from archon_rl.workflows.context_limit import ContextLimit
from archon_rl.workflows.parts import workflow_parts
from archon_rl.workflows.source import WorkflowSource
from archon_train.run.context import RunContext

Evaluate = Callable[..., dict[str, float]]
"""``(engine, *, data_ranks) -> metrics`` of the held-out records."""


@dataclass
class Sampling:
    """Builds what samples the completions of a run.

    Attributes:
        run: the run.
        algorithm: shapes rewards, and selects groups.
        task: records and tokenizer.
        workflow: turns records into trajectories.
        rollout: samples with the actor's weights.
        data_ranks: divide generation and rewards among them.
        scorer: scores completions; ``None`` for an algorithm that needs no rewards, or a workflow that gives them.
        reward: fingerprint of the reward function.
        code: option -> fingerprint of the user's own functions of the workflow.
        stack: closes what this starts.
        judge: explains failures.
    """

    run: RunContext
    algorithm: Algorithm
    task: Task
    workflow: WorkflowSource
    rollout: InferenceEngine
    data_ranks: DataRanks
    scorer: Scorer | None
    reward: Fingerprint | None
    code: Mapping[str, Fingerprint]
    stack: ExitStack
    judge: FailureJudge = field(init=False)
    _threads: RewardThreads | None = field(init=False)
    _collector: SampleAhead | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config, progress = self.run.config, self.run.progress
        fresh = FailureJudge(config.rewards.max_failed, progress.note)
        self.judge = fresh if self.scorer is None else self.scorer.failures
        self._threads = None
        if not self._scores_answers and self.scorer is not None:
            assert self.reward is not None, "the runner of the reward has a fingerprint"
            self.scorer.runner.close()  # these threads start processes of their own
            self._threads = reward_threads(config, self.reward)
            self.stack.callback(self._threads.close)

    @property
    def _scores_answers(self) -> bool:
        """Whether a reward scores single answers. Agents from outside reward training alone, so a reward evaluates."""
        return self.workflow.is_rlvr or uses_agents(self.run.config)

    def collection(self, context: ContextLimit) -> Collection:
        """What provides the completions of training steps.

        Args:
            context: the longest sequence that the run can train on.
        """
        config = self.run.config
        options = sampling_options(config.gconfig, self.task.ends)
        # The ranks run a reward model together, so they also wait for its completions together.
        if has_servers(config) and not isinstance(self.scorer, ModelScorer):
            return self._ahead(options, context)
        needs_experts = config.rollout.return_routed_experts
        if self.workflow.is_rlvr:
            return SampleNow(
                task=self.task,
                algorithm=self.algorithm,
                rollout=self.rollout,
                scorer=self.scorer,
                options=options,
                seed=config.seed,
                data_ranks=self.data_ranks,
                needs_experts=needs_experts,
                checks_tokens=config.rollout.check_trajectory_format,
                traces=config.rollout.enable_rollout_tracing,
            )
        sampler = self._sampler(options, rollout_seeds(config.seed), context)
        rounds = WorkflowRounds(sampler, self.rollout, self.data_ranks)
        has_rewards = self.scorer is not None
        return SampleRounds(self.task, self.algorithm, rounds, self.judge, has_rewards, needs_experts)

    def evaluation(self, context: ContextLimit) -> Evaluate:
        """What evaluates an engine on the held-out records. Follows ``collection``.

        Args:
            context: the longest sequence that evaluations can generate.
        """
        config, task = self.run.config, self.task
        generation = config.eval_gconfig
        options = sampling_options(generation or config.gconfig, task.ends, greedy=generation is None)
        limits = {"limit": config.trainer.eval_size, "pass_above": config.trainer.eval_pass_above}
        if runs_agents(config):
            return self._evaluation_of_agents(HeldOutSampling(options, context))
        if self._scores_answers:
            assert self.scorer is not None, "only evaluations that run the workflow do without a reward"
            return partial(
                evaluate_reward,
                encoder=task.encoder,
                dataset=task.validation,
                scorer=self.scorer,
                options=options,
                seed=config.seed,
                **limits,
            )
        sampler = replace(self._sampler(options, evaluation_seeds(config.seed), context), algorithm=None)

        def evaluate(engine: InferenceEngine, *, data_ranks: DataRanks) -> dict[str, float]:
            rounds = WorkflowRounds(sampler, engine, data_ranks)
            return evaluate_workflow(rounds, task.validation, self.judge, **limits)

        return evaluate

    def _evaluation_of_agents(self, held_out: HeldOutSampling) -> Evaluate:
        """Sessions need the collector; its groups come with the weights of the run's own servers alone."""
        ahead, trainer = self._collector, self.run.config.trainer
        assert ahead is not None, "agents need servers, so the run has a collector, which starts after this"
        ahead.held_out = held_out

        def evaluate(engine: InferenceEngine, *, data_ranks: DataRanks) -> dict[str, float]:
            assert engine is self.rollout, "no other engine has the agents' servers"
            settled = ahead.evaluate(evaluated_size(self.task.validation, trainer.eval_size)).values()
            n_samples = held_out.options.n_samples
            return group_metrics(settled, self.judge, n_samples=n_samples, pass_above=trainer.eval_pass_above)

        return evaluate

    def _ahead(self, options: GenerationConfig, context: ContextLimit) -> SampleAhead:
        code = (self.reward, self.code)
        parts: tuple[Any, ...] = (self.scorer, self.judge, options, context, pace_of(self.run.config), *code)
        ahead = SampleAhead(self.run, self.task, self.algorithm, self.rollout, *parts, self.data_ranks.size)
        self.stack.callback(ahead.close)
        self._collector = ahead
        return ahead

    def _sampler(
        self, options: GenerationConfig, seed_of: Callable[[int, int], int], context: ContextLimit
    ) -> GroupSampler:
        encoder = self.task.encoder
        parts = workflow_parts(encoder, options, self._threads)
        return GroupSampler(
            workflow=self.workflow.build(self.run.config, parts),
            name=self.workflow.name,
            encoder=encoder,
            client=None,
            n_samples=options.n_samples,
            seed_of=seed_of,
            algorithm=self.algorithm,
            context=context,
            checks_tokens=self.run.config.rollout.check_trajectory_format,
            traces=self.run.config.rollout.enable_rollout_tracing,
            keeps_rejected=self.run.config.rollout.dump_to_file,
        )
