"""``RLTrainer``: builds the engines of a reinforcement learning run and starts the training loop."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_rl.algorithm import Algorithm, AlgorithmFactory
from archon_rl.rewards.checking import NamedReward
from archon_rl.trainer.engines import build_inference_engine, complete_model_config, with_checkpoint
from archon_rl.trainer.evaluation import evaluate_reward
from archon_rl.trainer.loop import TrainingLoop
from archon_rl.trainer.resuming import fingerprints
from archon_rl.trainer.rl_step import RLStep
from archon_rl.trainer.roles import RoleEngines, build_role_engines
from archon_rl.trainer.rollout_batch import sampling_options
from archon_rl.trainer.sequence_lengths import prompt_lengths, rollout_limits, supervised_limits
from archon_rl.trainer.task import Task, build_task
from archon_rl.trainer.teacher import prepare_teacher, report_teacher
from archon_rl.trainer.warm_start import WarmStart
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
        self._run = run
        decisions: list[Decision] = []
        self._algorithm = algorithm(run.config, decisions)
        run.record(decisions)
        self._reward = _load_reward(run.config.reward, self._algorithm)
        if self._reward is None and run.config.trainer.eval_every:
            reason = "evaluation scores completions, and there is no reward"
            run.record([Decision("trainer.eval_every", str(run.config.trainer.eval_every), "0", reason)])
        completions = run.config.data.batch_size * run.config.gconfig.n_samples
        for role in ("actor", "critic"):
            updates = self._algorithm.updates_per_step(role)
            if updates is not None and completions < updates:
                raise ConfigError(
                    f"{role}.ppo_n_minibatches: found {updates}; allowed is at most data.batch_size x "
                    f"gconfig.n_samples = {completions} completions; lower it"
                )

    def fit(self) -> None:
        """Run the whole training.

        Raises:
            KeyboardInterrupt: the user asked to stop.
            ArchonError: from the data, the engines, the reward or the checkpoints.
        """
        run, config = self._run, self._run.config
        others = [getattr(config, role) for role in sorted(self._algorithm.roles)]
        limits = rollout_limits(config.gconfig, config.actor, *others)
        if config.warm_start.steps:
            limits += supervised_limits(config.actor)
        if "teacher" in self._algorithm.roles and config.teacher.warm_start.steps:
            limits += supervised_limits(config.teacher)
        task = build_task(run, prompt_lengths, limits)
        known = fingerprints(run, task.train, task.validation, reward=config.reward)
        total_steps = config.trainer.max_steps or max(1, task.cursor.steps(config.trainer.max_epochs))
        if self._algorithm.warmup_steps >= total_steps:
            raise ConfigError(
                f"critic.warmup_steps: found {self._algorithm.warmup_steps}, and the run has {total_steps} steps, so "
                "the actor would never learn; lower it, or raise trainer.max_steps"
            )
        with ExitStack() as stack:
            engines = self._build_engines(task, total_steps, stack)
            actor = engines.actor.engine
            rollout = build_inference_engine(run, actor)
            stack.callback(rollout.close)
            run.record([task.ends.decision()])
            step = RLStep(
                task=task,
                algorithm=self._algorithm,
                engines=engines,
                rollout=rollout,
                reward=self._reward,
                options=sampling_options(config.gconfig, task.ends),
                seed=config.seed,
                needs_experts=config.rollout.return_routed_experts,
            )
            evaluate = None
            if self._reward is not None and len(task.validation):
                evaluate = partial(
                    evaluate_reward,
                    encoder=task.encoder,
                    dataset=task.validation,
                    reward=self._reward,
                    options=sampling_options(config.gconfig, task.ends, greedy=True),
                    limit=config.trainer.eval_size,
                )
            loop = TrainingLoop(
                run=run,
                task=task,
                engine=actor,
                total_steps=total_steps,
                run_step=step,
                evaluate=evaluate and partial(evaluate, rollout, data_ranks=actor.data_ranks),
                fingerprints=known,
                shown=("reward", "loss") if self._reward is not None else ("rollout_kl_teacher", "loss"),
                beside={} if engines.critic is None else {"critic": engines.critic.engine},
            )
            done = loop.resume()
            if done == 0 and engines.teacher and evaluate:
                report_teacher(run, engines.teacher, evaluate)
            rollout.update_weights(actor.version)
            loop.run_from(done)

    def _build_engines(self, task: Task, total_steps: int, stack: ExitStack) -> RoleEngines:
        """The engines of all roles, after the actor's warm start; ``stack`` closes them."""
        run = self._run
        actor = complete_model_config(run, task.encoder.tokenizer)
        prepared = {}
        if "teacher" in self._algorithm.roles:
            prepared["teacher"] = prepare_teacher(run, actor, task)
        checkpoint = WarmStart("actor", run.config.warm_start).run(run, actor, task)
        if checkpoint is not None:
            actor = with_checkpoint(actor, checkpoint)
        return build_role_engines(run, actor, self._algorithm, total_steps=total_steps, stack=stack, prepared=prepared)


def _load_reward(name: str | None, algorithm: Algorithm) -> NamedReward | None:
    if name is None:
        if not algorithm.needs_rewards:
            return None
        installed = ", ".join(spec.name for spec in registry().all("reward"))
        raise ConfigError(f"reward: found none, and algorithm {algorithm.name!r} needs one; choose from {installed}")
    spec = registry().get("reward", name)
    return NamedReward(spec.name, spec.load())
