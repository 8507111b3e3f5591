"""The table of options that a run does not use, and why (``TABLE``).

The decisions of the compositions explain further ones (``without_effect``). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from archon_core.contracts.engine_config import EngineConfig
from archon_rl.collector_options import has_servers
from archon_rl.run_parts import Run
from archon_rl.shared_reference import (
    OF_OTHER_WEIGHTS,
    PLACING,
    has_adapters,
    is_actor_without_adapters,
    receives_adapters,
)
from archon_train.model_sections import is_frozen

SERVERS = (
    "addresses",
    "start_servers",
    "setup_timeout",
    "request_timeout",
    "request_retries",
    "min_servers",
    "enable_health_monitor",
    "health_check_interval_seconds",
    "health_check_timeout_seconds",
    "health_check_failure_threshold",
    "enable_topology_discovery",
    "topology_change_cooldown_seconds",
    "weight_transport",
    "weight_bucket_mb",
    "weight_group",
    "weight_timeout",
    "weight_canary",
    "newcomer_weights",
    "skip_unchanged",
    "use_lora",
    "interruption",
    "pause_grace_period",
)
"""Options of ``rollout`` about servers, which the engine ``local`` does not have."""

OF_REFERENCE = tuple(
    f"ref.{option.name}" for option in fields(EngineConfig) if option.name not in (*OF_OTHER_WEIGHTS, *PLACING)
)
"""Options of a reference's engine."""

AHEAD = ("max_head_offpolicyness", "max_concurrent_rollouts", "queue_size")
"""Options of ``rollout`` about sampling ahead of training."""

NOT_A_LANGUAGE_MODEL = "values have no temperature"


@dataclass(frozen=True)
class Unused:
    """Options without effect.

    Attributes:
        options: dotted names of options, or of sections with all their options.
        reason: why they have none; ``{algorithm}`` stands for the algorithm's name.
        when: whether they have none in a run.
    """

    options: tuple[str, ...]
    reason: str
    when: Callable[[Run], bool]


def _generation_rows(section: str) -> Iterator[Unused]:
    def is_greedy(run: Run) -> bool:
        generation = getattr(run.config, section)
        return run.samples and generation is not None and generation.greedy

    yield Unused(
        (f"{section}.temperature", f"{section}.top_p", f"{section}.top_k"),
        f"{section}.greedy takes the most probable token",
        is_greedy,
    )


def _optimizer_rows(role: str) -> Iterator[Unused]:
    def optimizer(run: Run) -> Any:
        return getattr(run.config, role).optimizer if run.has(role) and run.trains(role) else None

    def trained(test: Callable[[Any], bool]) -> Callable[[Run], bool]:
        return lambda run: (options := optimizer(run)) is not None and test(options)

    prefix = f"{role}.optimizer"
    yield Unused(
        (f"{prefix}.decay_steps_proportion",),
        "the learning rate has no final decay; lr_scheduler_type=wsd has one",
        trained(lambda options: options.lr_scheduler_type != "wsd"),
    )
    yield Unused(
        (f"{prefix}.min_lr_ratio",),
        "the learning rate does not decay with lr_scheduler_type=constant",
        trained(lambda options: options.lr_scheduler_type == "constant"),
    )
    yield Unused(
        (f"{prefix}.beta2", f"{prefix}.eps"),
        "sgd has no second moment",
        trained(lambda options: options.type == "sgd"),
    )


def _frozen_rows(role: str) -> Iterator[Unused]:
    yield Unused(
        (f"{role}.optimizer", f"{role}.grad_reduce_dtype"),
        "the model is not trained",
        lambda run: run.has(role) and is_frozen(run.config, role),
    )


def _norm_rows(section: str) -> Iterator[Unused]:
    def where(test: Callable[[Any], bool]) -> Callable[[Run], bool]:
        return _policy(lambda actor: getattr(actor, section) is not None and test(getattr(actor, section)))

    prefix = f"actor.{section}"
    yield Unused(
        (f"{prefix}.mean_leave1out", f"{prefix}.mean_weights"),
        f"{prefix}.mean_level is null",
        where(lambda norm: norm.mean_level is None),
    )
    yield Unused(
        (f"{prefix}.std_unbiased", f"{prefix}.eps", f"{prefix}.scale"),
        f"{prefix}.std_level is null",
        where(lambda norm: norm.std_level is None),
    )
    yield Unused(
        (f"{prefix}.std_unbiased",),
        f"{prefix}.scale=mean divides by no deviation",
        where(lambda norm: norm.scale == "mean"),
    )


def _policy(test: Callable[[Any], bool]) -> Callable[[Run], bool]:
    """Where a run has a policy loss, and ``test`` holds for its section ``actor``."""
    return lambda run: run.has_policy_loss and test(run.config.actor)


TABLE: tuple[Unused, ...] = (
    Unused(
        (
            "reward",
            "workflow",
            "dynamic_bs",
            "gconfig",
            "eval_gconfig",
            "rollout",
            "teacher",
            "trainer.eval_pass_above",
        ),
        "algorithm {algorithm} samples no completions",
        lambda run: not run.samples,
    ),
    Unused(
        ("ref",),
        "algorithm {algorithm} reads no reference",
        lambda run: not run.samples and not run.reads_reference,
    ),
    Unused(
        ("ref",),
        "actor.kl_loss_coef is 0, and without rewards there is no KL penalty in them",
        lambda run: run.distills_only and not run.reads_reference,
    ),
    Unused(
        ("ref",),
        "actor.kl_ctl and actor.kl_loss_coef are 0",
        lambda run: run.samples and not run.reads_reference,
    ),
    Unused(
        ("enable_offload",),
        "the run has no model beside the actor in its training engines",
        lambda run: not run.has_idle_models,
    ),
    Unused(("actor.temperature",), NOT_A_LANGUAGE_MODEL, lambda run: run.outline.algorithm.name == "rw"),
    Unused(
        ("ref.temperature",),
        "the policies are compared at the temperature of the actor",
        lambda run: run.has("ref"),
    ),
    Unused(("critic.temperature",), NOT_A_LANGUAGE_MODEL, lambda run: run.has("critic")),
    Unused(("reward_model.temperature",), NOT_A_LANGUAGE_MODEL, lambda run: run.has("reward_model")),
    Unused(("reward_model.mb_spec.granularity",), "it scores single sequences", lambda run: run.has("reward_model")),
    Unused(
        OF_REFERENCE,
        "the reference is the actor without its adapters, in the actor's engine",
        lambda run: run.samples and run.has("ref") and is_actor_without_adapters(run.config),
    ),
    Unused(
        ("ref.mb_spec.granularity",),
        "the reference reads single sequences",
        lambda run: run.has("ref") and run.learns_pairs,
    ),
    Unused(
        ("data.answer_key",),
        "algorithm {algorithm} reads data.chosen_key and data.rejected_key",
        lambda run: run.learns_pairs,
    ),
    Unused(
        ("data.validation_size",),
        "the held-out records have their own path or split",
        lambda run: run.has_separate_validation,
    ),
    Unused(
        ("trainer.eval_every", "trainer.eval_size", "eval_gconfig"),
        "there are no held-out records; set data.validation_size or data.validation_path",
        lambda run: not run.evaluates,
    ),
    Unused(
        ("trainer.eval_every", "trainer.eval_size", "eval_gconfig"),
        "agents from outside run on training records alone, and there is no reward that could score answers to "
        "held-out ones",
        lambda run: run.uses_agents and not run.evaluates_rewards and run.evaluates,
    ),
    Unused(
        ("trainer.eval_every", "trainer.eval_size", "eval_gconfig"),
        "evaluations score completions, and there is no reward",
        lambda run: run.samples and not run.evaluates_rewards and run.evaluates,
    ),
    Unused(
        ("trainer.eval_pass_above",),
        "evaluations have one completion per record; eval_gconfig.n_samples sets more",
        lambda run: run.samples and (run.config.eval_gconfig is None or run.config.eval_gconfig.n_samples == 1),
    ),
    Unused(
        ("trainer.max_epochs",),
        "trainer.max_steps sets the length of the run",
        lambda run: run.config.trainer.max_steps is not None,
    ),
    Unused(
        ("tokenizer.vocab_size",),
        "only a tokenizer of the kind bpe is built to a size",
        lambda run: run.config.tokenizer.kind != "bpe",
    ),
    Unused(
        ("tokenizer_path", "tokenizer.use_chat_template"),
        "the tokenizer is built from the data and has no chat template",
        lambda run: run.config.tokenizer.kind != "pretrained",
    ),
    Unused(
        ("reward",),
        "agents return the rewards of their sessions, in evaluations too",
        lambda run: run.has_agents("inline", "subproc"),
    ),
    Unused(
        ("rewards",),
        "there is no reward",
        lambda run: run.samples and not run.scores and not run.gives_rewards,
    ),
    Unused(
        ("rewards.processes", "rewards.timeout_seconds"),
        "the workflow gives the rewards",
        lambda run: not run.scores and run.gives_rewards,
    ),
    Unused(
        ("rollout.agent",),
        "there is no agent; set rollout.agent.agent_cls_path, or rollout.agent.mode=online",
        lambda run: run.samples and not run.uses_agents,
    ),
    Unused(
        ("rollout.agent.subproc_max_workers",),
        "rollout.agent.mode is not subproc",
        lambda run: run.has_agents("inline", "online"),
    ),
    Unused(
        ("rollout.agent.set_reward_finish_timeout", "rollout.agent.admin_api_key"),
        "rollout.agent.mode is not online, so the run starts its agents itself",
        lambda run: run.has_agents("inline", "subproc"),
    ),
    Unused(
        ("rollout.agent.agent_kwargs",),
        "agents run outside of the run",
        lambda run: run.has_agents("online"),
    ),
    Unused(
        ("rewards.processes", "rewards.timeout_seconds"),
        "a model scores the completions, in the trainer's processes",
        lambda run: run.has("reward_model"),
    ),
    Unused(
        ("rewards.timeout_seconds",),
        "a function in the trainer's process (rewards.processes=0) cannot be interrupted",
        lambda run: run.scores and not run.has("reward_model") and run.config.rewards.processes == 0,
    ),
    Unused(
        ("warm_start.lr", "warm_start.batch_size"),
        "warm_start.steps is 0",
        lambda run: hasattr(run.config, "warm_start") and run.config.warm_start.steps == 0,
    ),
    Unused(
        ("teacher.warm_start.lr", "teacher.warm_start.batch_size"),
        "teacher.warm_start.steps is 0",
        lambda run: run.has("teacher") and run.config.teacher.warm_start.steps == 0,
    ),
    Unused(
        tuple(f"teacher.optimizer.{name}" for name in ("lr", "lr_scheduler_type", "warmup_steps_proportion")),
        "the supervised steps have their own schedule, with the rate teacher.warm_start.lr",
        lambda run: run.has("teacher") and run.trains("teacher"),
    ),
    Unused(
        ("teacher.baseline",),
        "teacher.distill_loss_weight=0 only reports the KL",
        lambda run: run.has("teacher") and run.config.teacher.distill_loss_weight == 0,
    ),
    Unused(
        ("dynamic_bs",),
        "no group is left out of a batch without actor.dynamic_sampling=true",
        lambda run: run.samples and not (run.config.actor.dynamic_sampling and not run.distills_only),
    ),
    Unused(
        ("actor.dynamic_sampling_max_rounds",),
        "there is one round without actor.dynamic_sampling=true, and with dynamic_bs=true",
        lambda run: run.has_policy_loss and (not run.config.actor.dynamic_sampling or run.config.dynamic_bs),
    ),
    Unused(
        ("actor.overlong_tokens", "actor.overlong_penalty_factor"),
        "actor.overlong_reward_penalty is false",
        _policy(lambda actor: not actor.overlong_reward_penalty),
    ),
    Unused(
        ("actor.kl_estimator",),
        "actor.kl_ctl is 0, or there is no ref",
        lambda run: run.has_policy_loss and (not run.config.actor.kl_ctl or run.config.ref is None),
    ),
    Unused(
        ("actor.kl_loss_estimator",),
        "actor.kl_loss_coef is 0",
        lambda run: run.samples and not run.config.actor.kl_loss_coef,
    ),
    Unused(
        ("actor.rejection_sampling.agg",),
        "it applies to whole sequences, and actor.rejection_sampling.level is token",
        _policy(
            lambda actor: (
                actor.use_decoupled_loss
                and actor.rejection_sampling is not None
                and actor.rejection_sampling.level == "token"
            )
        ),
    ),
    Unused(
        ("rollout.return_routed_experts",),
        "no engine has archon.moe_routing_replay=true, so the recorded experts are not read",
        lambda run: run.samples and not run.replays_routing,
    ),
    Unused(
        tuple(f"rollout.{name}" for name in SERVERS),
        "the engine local has no servers",
        lambda run: run.samples and not run.has_servers,
    ),
    Unused(
        ("rollout.use_lora",),
        "the actor trains no adapters",
        lambda run: run.has_servers and not has_adapters(run.config.actor),
    ),
    Unused(
        ("rollout.use_lora",),
        "by this transport, these servers receive merged weights, which need nothing on their side",
        lambda run: run.has_servers and not receives_adapters(run.config.rollout),
    ),
    Unused(
        ("rollout.pause_grace_period",),
        "with rollout.interruption=keep, requests go on while servers switch, so there is no end to wait for",
        lambda run: run.has_servers and run.config.rollout.interruption == "keep",
    ),
    Unused(
        tuple(f"rollout.{name}" for name in AHEAD),
        "the trainer's ranks sample and train in turns; servers, such as served:d1, sample ahead",
        lambda run: run.samples and not has_servers(run.config),
    ),
    Unused(
        tuple(f"rollout.{name}" for name in AHEAD),
        "a model scores the completions of a whole step on the trainer's ranks, so the step samples them first",
        lambda run: run.has("reward_model") and has_servers(run.config),
    ),
    Unused(
        tuple(name for name in (f"rollout.{option}" for option in SERVERS) if "health_check" in name),
        "rollout.enable_health_monitor is false",
        lambda run: run.has_servers and not run.config.rollout.enable_health_monitor,
    ),
    Unused(
        ("rollout.topology_change_cooldown_seconds",),
        "rollout.enable_topology_discovery is false",
        lambda run: run.has_servers and not run.config.rollout.enable_topology_discovery,
    ),
    *(row for section in ("gconfig", "eval_gconfig") for row in _generation_rows(section)),
    *(row for role in ("actor", "critic", "teacher") for row in _optimizer_rows(role)),
    *(row for role in ("ref", "teacher", "reward_model") for row in _frozen_rows(role)),
    *(row for norm in ("reward_norm", "adv_norm") for row in _norm_rows(norm)),
)
"""All rows. Of several rows for an option, the first that applies explains it."""
