"""``RLTrainer``: builds the engines of a reinforcement learning run and starts the training loop."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_core.ranks.role_ranks import ACTOR
from archon_rl.agents.checks import workflow_name
from archon_rl.algorithm import Algorithm, AlgorithmFactory
from archon_rl.collector_options import sampling_problems
from archon_rl.config import RewardOptions
from archon_rl.rewards.calls import RewardRunner
from archon_rl.rewards.in_process import InProcessRewards
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import RewardSource, reward_source
from archon_rl.run_problems import (
    explain_missing_reward,
    refuse,
    too_long_warmup,
    too_many_minibatches,
    workflow_problems,
)
from archon_rl.trainer.composition import composed
from archon_rl.trainer.dumping import TrajectoryDump
from archon_rl.trainer.engines import build_inference_engine, complete_model_config, with_checkpoint
from archon_rl.trainer.loop import TrainingLoop
from archon_rl.trainer.resuming import fingerprints
from archon_rl.trainer.reward_model import ModelScorer, RewardModel
from archon_rl.trainer.rl_step import RLStep
from archon_rl.trainer.role_service import serve_models
from archon_rl.trainer.roles import RoleEngines, build_role_engines
from archon_rl.trainer.sampling_choice import Sampling
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.sequence_lengths import (
    LengthLimit,
    prompt_lengths,
    rollout_context,
    rollout_limits,
    supervised_limits,
)
from archon_rl.trainer.served_teacher import build_served_teacher
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.task import Task, build_task
from archon_rl.trainer.teacher import evaluates_teacher, prepare_teacher, report_teacher, vocab_size_of
from archon_rl.trainer.warm_start import WarmStart
from archon_rl.workflows.own_code import own_code
from archon_rl.workflows.rewards_needed import evaluates_rewards, gives_rewards, uses_reward
from archon_rl.workflows.source import workflow_source
from archon_train.run.context import RunContext


class RLTrainer:
    """Reinforcement learning from verifiable rewards or from a teacher; implements ``contracts.train.Trainer``.

    Args:
        run: the run.
        algorithm: builds the algorithm.

    Raises:
        ConfigError: there is no reward, and the algorithm needs one; or a step has fewer completions than mini-batches.
    """

    def __init__(self, run: RunContext, algorithm: AlgorithmFactory) -> None:
        self._run, self._algorithm = run, composed(run, algorithm)
        named = _choose_reward(run.config, self._algorithm)
        refuse(sampling_problems(run.config, reward_role=named and named.role))
        self._workflow = workflow_source(workflow_name(run.config), registry())
        refuse(workflow_problems(run.config, "" if named is None else named.role))
        self._reward = named if uses_reward(run.config) else None
        for role in ("actor", "critic"):
            updates = self._algorithm.updates_per_step(role)
            if updates is not None:
                refuse(too_many_minibatches(role, updates, run.config))

    def fit(self) -> None:
        """Run the whole training.

        Raises:
            KeyboardInterrupt: the user asked to stop.
            ArchonError: from the data, the engines, the reward or the checkpoints.
        """
        run, config = self._run, self._run.config
        if run.role != ACTOR:
            serve_models(run, self._algorithm)
            return
        others = [getattr(config, role) for role in sorted(self._algorithm.roles)]
        limits = rollout_limits(config.gconfig, config.actor, *others)
        if config.warm_start.steps:
            limits += supervised_limits(config.actor)
        if "teacher" in self._algorithm.roles and config.teacher.warm_start.steps:
            limits += supervised_limits(config.teacher)
        task = build_task(run, prompt_lengths, limits, self._held_out_limits(limits))
        total_steps = task.total_steps(config.trainer)
        refuse(too_long_warmup(self._algorithm.warmup_steps, total_steps))
        if self._algorithm.max_rounds > 1 and config.trainer.max_steps is None:
            run.record([_epochs_decision(config.trainer.max_epochs, total_steps)])
        with ExitStack() as stack:
            rewards = None if self._reward is None else _build_runner(run, self._reward)
            if rewards is not None:
                stack.callback(rewards.close)
            code = own_code(config)
            known = fingerprints(run, task.train, task.validation, reward=rewards, code=code)
            engines = self._build_engines(task, total_steps, stack)
            actor = engines.actor.engine
            rollout = build_inference_engine(run, actor)
            stack.callback(rollout.close)
            run.record([task.ends.decision()])
            scorer = None if rewards is None else self._build_scorer(rewards, task)
            sampling = Sampling(
                run=run,
                algorithm=self._algorithm,
                task=task,
                workflow=self._workflow,
                rollout=rollout,
                data_ranks=actor.data_ranks,
                scorer=scorer,
                reward=known.get("reward"),
                code={option: known[option] for option in code},
                stack=stack,
            )
            collection = sampling.collection(rollout_context(config.actor, *others))
            dump = TrajectoryDump(run.folder, task.encoder, run.ranks) if config.rollout.dump_to_file else None
            step = RLStep(collection, self._algorithm, engines, rollout, config.seed, dump)
            evaluate = None
            if evaluates_rewards(config) and len(task.validation):
                evaluate = sampling.evaluation(rollout_context(config.actor))
            loop = TrainingLoop(
                run=run,
                task=task,
                engine=actor,
                total_steps=total_steps,
                run_step=step,
                evaluate=evaluate and partial(evaluate, rollout, data_ranks=actor.data_ranks),
                fingerprints=known,
                shown=("reward", "loss") if self._algorithm.needs_rewards else ("rollout_kl_teacher", "loss"),
                beside={} if engines.critic is None else {"critic": engines.critic},
                collection=collection,
            )
            done = loop.resume()
            if done == 0 and evaluate and isinstance(engines.teacher, SharedEngine) and evaluates_teacher(run):
                report_teacher(run, engines.teacher, evaluate)
            rollout.update_weights(actor.version)
            collection.published(done)
            loop.run_from(done)

    def _held_out_limits(self, limits: list[LengthLimit]) -> list[LengthLimit]:
        """The longest held-out records that the evaluations can take; ``limits`` are those of training."""
        config = self._run.config
        section = "gconfig" if config.eval_gconfig is None else "eval_gconfig"
        generation = getattr(config, section)
        found = limits if config.eval_gconfig is None else rollout_limits(generation, config.actor, section=section)
        if "teacher" in self._algorithm.roles and evaluates_rewards(config) and evaluates_teacher(self._run):
            found = [*found, *rollout_limits(generation, config.teacher, section=section)]
        return found

    def _build_scorer(self, rewards: RewardRunner | RewardModel, task: Task) -> Scorer:
        """Scores completions; loads the reward model, if the reward is one."""
        settings = (task.encoder, self._run.config.rewards.max_failed, self._run.progress.note)
        if not self._reward.role:
            return Scorer(rewards, *settings)
        rewards.load(task.encoder)
        return ModelScorer(rewards, *settings)

    def _build_engines(self, task: Task, total_steps: int, stack: ExitStack) -> RoleEngines:
        """The engines of all roles, after the actor's warm start; ``stack`` closes them."""
        run = self._run
        actor = complete_model_config(run, task.encoder.tokenizer)
        prepared = {}
        if "teacher" in self._algorithm.roles:
            teacher = prepare_teacher(run, actor, task)
            if teacher.engine_type == "rollout":
                vocab_size = vocab_size_of(actor) or len(task.encoder.tokenizer)
                teacher = build_served_teacher(
                    run, teacher, vocab_size=vocab_size, temperature=self._algorithm.temperature
                )
                stack.callback(teacher.close)
            prepared["teacher"] = teacher
        checkpoint = WarmStart("actor", run.config.warm_start).run(run, actor, task)
        if checkpoint is not None:
            actor = with_checkpoint(actor, checkpoint)
        return build_role_engines(run, actor, self._algorithm, total_steps=total_steps, stack=stack, prepared=prepared)


def _epochs_decision(max_epochs: int, total_steps: int) -> Decision:
    return Decision(
        option="trainer.max_epochs",
        requested=str(max_epochs),
        effective=f"{total_steps} steps",
        reason="each counts as data.batch_size records, without those that actor.dynamic_sampling draws in addition",
    )


def _choose_reward(config: Any, algorithm: Algorithm) -> RewardSource | None:
    if config.reward is None:
        if not algorithm.needs_rewards or gives_rewards(config):
            return None
        raise ConfigError(explain_missing_reward(algorithm.name))
    return reward_source(config.reward, registry())


def _build_runner(run: RunContext, source: RewardSource) -> RewardRunner | RewardModel:
    options: RewardOptions = run.config.rewards
    if source.role:
        return load_target(source.target, origin=source.origin)(run, source.role)
    if options.processes == 0:
        return InProcessRewards(source)
    return RewardPool(source, processes=options.processes, timeout=options.timeout_seconds)
