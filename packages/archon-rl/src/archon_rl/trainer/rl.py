"""``RLTrainer``: builds the engines of a reinforcement learning run and starts the training loop."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_rl.algorithm import AlgorithmFactory
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
from archon_rl.trainer.warm_start import warm_start
from archon_train.run.context import RunContext


class RLTrainer:
    """Reinforcement learning from verifiable rewards; implements ``contracts.train.Trainer``.

    Args:
        run: the run.
        algorithm: builds the algorithm.

    Raises:
        ConfigError: there is no reward, or a step has fewer completions than mini-batches.
    """

    def __init__(self, run: RunContext, algorithm: AlgorithmFactory) -> None:
        self._run = run
        decisions: list[Decision] = []
        self._algorithm = algorithm(run.config, decisions)
        run.record(decisions)
        self._reward = _load_reward(run.config.reward, self._algorithm.name)
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
        evaluation = config.eval_gconfig
        held_out = None if evaluation is None else rollout_limits(evaluation, config.actor, section="eval_gconfig")
        task = build_task(run, prompt_lengths, limits, held_out)
        known = fingerprints(run, task.train, task.validation, reward=config.reward)
        total_steps = config.trainer.max_steps or max(1, task.cursor.steps(config.trainer.max_epochs))
        if self._algorithm.warmup_steps >= total_steps:
            raise ConfigError(
                f"critic.warmup_steps: found {self._algorithm.warmup_steps}, and the run has {total_steps} steps, so "
                "the actor would never learn; lower it, or raise trainer.max_steps"
            )
        if self._algorithm.max_rounds > 1 and config.trainer.max_steps is None:
            run.record([_epochs_decision(config.trainer.max_epochs, total_steps)])
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
            evaluate = partial(
                evaluate_reward,
                rollout,
                task.encoder,
                task.validation,
                self._reward,
                sampling_options(evaluation or config.gconfig, task.ends, greedy=evaluation is None),
                limit=config.trainer.eval_size,
                seed=config.seed,
                pass_above=config.trainer.eval_pass_above,
                data_ranks=actor.data_ranks,
            )
            loop = TrainingLoop(
                run=run,
                task=task,
                engine=actor,
                total_steps=total_steps,
                run_step=step,
                evaluate=evaluate if len(task.validation) else None,
                fingerprints=known,
                shown=("reward", "loss"),
                beside={} if engines.critic is None else {"critic": engines.critic.engine},
            )
            done = loop.resume()
            rollout.update_weights(actor.version)
            loop.run_from(done)

    def _build_engines(self, task: Task, total_steps: int, stack: ExitStack) -> RoleEngines:
        """The engines of all roles, after the actor's warm start; ``stack`` closes them."""
        run = self._run
        actor = complete_model_config(run, task.encoder.tokenizer)
        checkpoint = warm_start(run, actor, task)
        if checkpoint is not None:
            actor = with_checkpoint(actor, checkpoint)
        return build_role_engines(run, actor, self._algorithm, total_steps=total_steps, stack=stack)


def _epochs_decision(max_epochs: int, total_steps: int) -> Decision:
    return Decision(
        option="trainer.max_epochs",
        requested=str(max_epochs),
        effective=f"{total_steps} steps",
        reason="each counts as data.batch_size records, without those that actor.dynamic_sampling draws in addition",
    )


def _load_reward(name: str | None, algorithm: str) -> NamedReward:
    if name is None:
        installed = ", ".join(spec.name for spec in registry().all("reward"))
        raise ConfigError(f"reward: found none, and algorithm {algorithm!r} needs one; choose from {installed}")
    spec = registry().get("reward", name)
    return NamedReward(spec.name, spec.load())
