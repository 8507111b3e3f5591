"""Settings with which a run cannot train, found before it starts.

Dry runs call these functions through ``archon_rl.preview``, and compositions before they are built, so that both refuse
the same settings in the same words. Each yields found / allowed / fix sentences. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from archon_core.config.rules import shown_value
from archon_core.config.validation import check_options
from archon_core.errors import ConfigError
from archon_core.plugins import RewardSpec, registry
from archon_rl.agents.checks import agent_problems, uses_agents
from archon_rl.config import NormConfig
from archon_rl.teacher_options import is_pure_distillation
from archon_rl.workflows.options import NO_REWARD
from archon_rl.workflows.tool_options import NO_ENVIRONMENT

RLVR, MULTI_TURN, ENVIRONMENT = "rlvr", "multi_turn", "environment"
"""Names of workflows."""

GROUP_NORM = NormConfig(mean_level="group", std_level="group")
"""Normalisation of rewards by ``grpo`` if the options name none."""


def refuse(problems: Iterable[str]) -> None:
    """Raise ConfigError for the first problem, if there is one."""
    for text in problems:
        raise ConfigError(text)


def policy_problems(config: Any, *, relative: bool = False) -> Iterator[str]:
    """Problems of policy optimisation and of distillation: the sections ``actor`` and ``gconfig``.

    Args:
        relative: whether rewards are compared within their group if the options name no normalisation, as in grpo.
    """
    options, generation = config.actor, config.gconfig
    yield from (text for _, text in check_options(options, "actor"))
    yield from agent_problems(config)
    yield from untrained("actor", config)
    yield from equal_samples("gconfig", generation)
    yield from truncated_completions("actor", config)
    if config.ref is None and options.kl_loss_coef:
        yield (
            f"actor.kl_loss_coef: found {options.kl_loss_coef}, which needs a reference model, and no 'ref' section; "
            "add one ('ref: {}' takes the actor's initial weights), or set actor.kl_loss_coef=0"
        )
    if is_pure_distillation(config.teacher):
        return
    if relative and options.reward_norm is None and options.adv_norm is None:
        yield from _lone_samples(config)
    yield from _group_problems(options, generation)
    yield from _overlong_problems(options, generation)
    if options.reward_scaling == 0:
        yield "actor.reward_scaling: found 0, which makes all rewards equal; set another number"


def value_problems(config: Any) -> Iterator[str]:
    """Problems of the critic of ``ppo``, which the configuration has."""
    yield from (text for _, text in check_options(config.critic, "critic"))
    yield from untrained("critic", config)
    yield from truncated_completions("critic", config)
    if is_pure_distillation(config.teacher):
        yield (
            "teacher.rl_loss_weight: found 0 with algorithm=ppo; pure distillation has no advantages for a critic to "
            "estimate; set algorithm=grpo and leave the section critic out, or set a weight above 0"
        )


def preference_problems(config: Any) -> Iterator[str]:
    """Problems of training on pairs."""
    yield from (text for _, text in check_options(config.actor, "actor"))
    yield from untrained("actor", config)


def untrained(role: str, config: Any) -> Iterator[str]:
    """The problem of a trained model without an optimizer."""
    if getattr(config, role).optimizer is None:
        yield (
            f"{role}.optimizer: found null; algorithm {config.algorithm} trains the {role}; leave it out, or set its "
            "options"
        )


def unchanged(role: str, config: Any) -> Iterator[str]:
    """The problem of a trained model whose weights stay what they are."""
    optimizer = getattr(config, role).optimizer
    if optimizer is not None and optimizer.lr == 0:
        yield f"{role}.optimizer.lr: found 0, with which the {role} never changes; set it above 0"


def untaught_teacher(teacher: Any) -> Iterator[str]:
    """The problem of distilling from random weights, on the trainer's ranks."""
    is_random = not teacher.path or teacher.init_from_scratch
    if teacher.engine_type == "train" and is_random and not teacher.warm_start.steps:
        found = "init_from_scratch=true" if teacher.path else "no teacher.path"
        yield (
            f"teacher.warm_start.steps: found 0 with {found}, so the teacher has random weights; set teacher.path to a "
            "checkpoint, or teacher.warm_start.steps to train one"
        )


def teacher_taught_apart(teacher: Any) -> Iterator[str]:
    """The problem of supervised steps of a teacher on its own ranks."""
    strategy = teacher.scheduling_strategy
    apart = strategy is not None and (strategy.type == "separation" or strategy.target not in (None, "actor"))
    if teacher.warm_start.steps and apart:
        yield (
            f"teacher.warm_start.steps: found {teacher.warm_start.steps} with a teacher on its own ranks "
            f"(teacher.scheduling_strategy.type={strategy.type}), but these steps run on the actor's ranks; train the "
            "teacher in a run of algorithm=sft and set teacher.path to its export, or leave out "
            "teacher.scheduling_strategy"
        )


def equal_samples(section: str, generation: Any) -> Iterator[str]:
    """The problem of several samples of a prompt that are all the same."""
    if generation.n_samples < 2:
        return
    if generation.greedy:
        option, value, other = "greedy", "true", "false"
    elif generation.top_k == 1:
        option, value, other = "top_k", "1", "0"
    else:
        return
    yield (
        f"{section}.{option}: found {value} with {section}.n_samples={generation.n_samples}, so that all samples of a "
        f"prompt are equal; set {section}.n_samples=1, or {section}.{option}={other}"
    )


def truncated_completions(role: str, config: Any) -> Iterator[str]:
    """The problem of an option that leaves out completions at the length limit, while all reach it."""
    found = _always_truncated(config.gconfig)
    if found is None:
        return
    cause, fix = found
    results = {"overlong_filtering": "none is trained on", "mask_no_eos_with_zero": "none has a reward"}
    if role == "critic":
        results = {"mask_no_eos_with_zero": "none is trained on"}
    for name, result in results.items():
        if getattr(getattr(config, role), name):
            yield (
                f"{role}.{name}: found true with {cause}, so that every completion reaches the length limit and "
                f"{result}; {fix}"
            )


def _always_truncated(generation: Any) -> tuple[str, str] | None:
    """Why no completion can end before the length limit, and what to do; ``None`` if one can."""
    least, most = generation.min_new_tokens, generation.max_new_tokens
    if generation.ignore_eos and not (generation.stop_token_ids or generation.stop):
        return (
            "gconfig.ignore_eos=true and neither gconfig.stop nor gconfig.stop_token_ids",
            "set one of the two to false, or add stop texts",
        )
    fix = "set it to false, or lower gconfig.min_new_tokens"
    if least == most:
        return f"gconfig.min_new_tokens={least}, which is gconfig.max_new_tokens", fix
    if generation.max_tokens is not None and least >= generation.max_tokens - 1:
        return f"gconfig.min_new_tokens={least} and gconfig.max_tokens={generation.max_tokens}, prompt included", fix
    return None


def too_many_minibatches(role: str, updates: int, config: Any) -> Iterator[str]:
    """The problem of a step with fewer completions than mini-batches of the model ``role``."""
    completions = config.data.batch_size * config.gconfig.n_samples
    if completions < updates:
        yield (
            f"{role}.ppo_n_minibatches: found {updates}; allowed is at most data.batch_size x gconfig.n_samples = "
            f"{completions} completions; lower it"
        )


def too_long_warmup(warmup_steps: int, total_steps: int) -> Iterator[str]:
    """The problem of a critic's warm-up that lasts for the whole run."""
    if warmup_steps >= total_steps:
        yield (
            f"critic.warmup_steps: found {warmup_steps}, and the run has {total_steps} steps, so the actor would never "
            "learn; lower it, or raise trainer.max_steps"
        )


def workflow_problems(config: Any, reward_role: str) -> Iterator[str]:
    """Problems of the workflow together with the reward.

    Args:
        reward_role: section of the model that scores completions; empty for a function.
    """
    name = config.workflow
    if reward_role and uses_agents(config):
        yield (
            f"reward: found {config.reward}, a model that scores the completions of a whole step, with agents, which "
            "return the rewards of their sessions; leave it out"
        )
    if name == MULTI_TURN and config.reward is None:
        yield NO_REWARD
    if name == ENVIRONMENT and config.environment.name is None:
        yield NO_ENVIRONMENT
    if reward_role and name != RLVR and not uses_agents(config):
        yield (
            f"workflow: found {name} with reward={config.reward}, a model on the trainer's ranks that scores the "
            f"completions of a whole step; allowed is {RLVR}; set workflow={RLVR}, or choose a reward function"
        )


def explain_missing_reward(algorithm: str) -> str:
    """The problem of a run of ``algorithm`` that learns from rewards and has none."""
    installed = ", ".join(spec.name for spec in registry().all(RewardSpec))
    return (
        f"reward: found none, and algorithm {algorithm!r} needs one; choose from {installed}, or name a function of a "
        "module in the working directory (module:function)"
    )


def _lone_samples(config: Any) -> Iterator[str]:
    """Groups of one sample in an algorithm that compares the samples of a prompt."""
    if config.gconfig.n_samples < 2:
        yield (
            f"gconfig.n_samples: found {config.gconfig.n_samples}; algorithm {config.algorithm} compares the samples "
            "of a prompt; set it to 2 or more, or compare those of a batch with actor.reward_norm.mean_level=batch"
        )


def _group_problems(options: Any, generation: Any) -> Iterator[str]:
    """Comparisons of the samples of a prompt."""
    n_samples = generation.n_samples
    if options.dynamic_sampling and n_samples < 2:
        yield (
            f"actor.dynamic_sampling: found true with gconfig.n_samples={n_samples}; it leaves out prompts whose "
            "samples all have the same reward; set gconfig.n_samples to 2 or more, or actor.dynamic_sampling=false"
        )
    for option, norm in (("reward_norm", options.reward_norm), ("adv_norm", options.adv_norm)):
        if norm is None or "group" not in (norm.mean_level, norm.std_level):
            continue
        if n_samples < 2:
            yield (
                f"actor.{option}: found level 'group', which compares the samples of a prompt, and gconfig.n_samples="
                f"{n_samples}; set gconfig.n_samples to 2 or more"
            )
        elif norm.group_size not in (None, n_samples):
            yield (
                f"actor.{option}.group_size: found {norm.group_size}; allowed is gconfig.n_samples={n_samples}; "
                "leave it out, or set it to '${gconfig.n_samples}'"
            )


def _overlong_problems(options: Any, generation: Any) -> Iterator[str]:
    if not options.overlong_reward_penalty:
        return
    tokens, factor, limit = options.overlong_tokens, options.overlong_penalty_factor, generation.max_new_tokens
    if tokens is None or not 1 <= tokens <= limit:
        yield (
            f"actor.overlong_tokens: found {shown_value(tokens)}; allowed are 1 to {limit}, which is "
            "gconfig.max_new_tokens; set it, or actor.overlong_reward_penalty=false"
        )
    if factor is None or not math.isfinite(factor):
        yield (
            f"actor.overlong_penalty_factor: found {shown_value(factor)}; allowed are finite numbers; set it, or "
            "actor.overlong_reward_penalty=false"
        )
