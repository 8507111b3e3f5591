"""What a dry run reports of this package's algorithms: problems and decisions. Imports no torch.

An algorithm of another package that uses one of this package's trainers can name a function of this module as its
``preview``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from archon_core.config.validation import check_options
from archon_core.contracts.preview import RunOutline, RunPreview
from archon_engine.options.combinations import refuse_when_strict
from archon_rl.collector_options import sampling_problems
from archon_rl.composition_decisions import Choices, dpo_choices, grpo_choices, ppo_choices, rw_choices
from archon_rl.data_problems import data_problems, missing_path, tokenizer_problems
from archon_rl.run_problems import (
    equal_samples,
    explain_missing_reward,
    policy_problems,
    preference_problems,
    teacher_taught_apart,
    too_long_warmup,
    too_many_minibatches,
    unchanged,
    untaught_teacher,
    untrained,
    value_problems,
    workflow_problems,
)
from archon_rl.teacher_options import is_pure_distillation
from archon_rl.unused_options import unused_options
from archon_rl.workflows.rewards_needed import gives_rewards
from archon_train.model_sections import stray_value_head


def preview_sft(outline: RunOutline) -> RunPreview:
    """Supervised fine-tuning."""
    return _preview(outline, (*untrained("actor", outline.config), *stray_value_head("actor", outline.config.actor)))


def preview_dpo(outline: RunOutline) -> RunPreview:
    """Direct preference optimisation."""
    problems = (*preference_problems(outline.config), *stray_value_head("actor", outline.config.actor))
    return _preview(outline, problems, choices=dpo_choices)


def preview_rw(outline: RunOutline) -> RunPreview:
    """Reward models."""
    return _preview(outline, preference_problems(outline.config), choices=rw_choices)


def preview_grpo(outline: RunOutline) -> RunPreview:
    """Reinforcement learning without a critic."""
    return _preview_policy(outline, policy_problems(outline.config, relative=True), grpo_choices)


def preview_ppo(outline: RunOutline) -> RunPreview:
    """Reinforcement learning with a critic."""
    config = outline.config
    problems = [*policy_problems(config)]
    if config.critic is not None:
        problems += (*value_problems(config), *unchanged("critic", config))
        problems += too_many_minibatches("critic", config.critic.ppo_n_minibatches, config)
        if config.trainer.max_steps is not None:
            problems += too_long_warmup(config.critic.warmup_steps, config.trainer.max_steps)
    return _preview_policy(outline, problems, ppo_choices)


def _preview_policy(outline: RunOutline, problems: Iterable[str], choices: Callable[[Any], Choices]) -> RunPreview:
    config = outline.config
    found = [*problems, *too_many_minibatches("actor", config.actor.ppo_n_minibatches, config)]
    found += sampling_problems(config, reward_role=outline.reward_role)
    found += workflow_problems(config, outline.reward_role)
    if config.teacher is not None:
        found += untaught_teacher(config.teacher)
        found += teacher_taught_apart(config.teacher)
    if config.eval_gconfig is not None:
        found += equal_samples("eval_gconfig", config.eval_gconfig)
    missing = []
    if config.reward is None and not is_pure_distillation(config.teacher) and not gives_rewards(config):
        missing.append(explain_missing_reward(outline.algorithm.name))
    return _preview(outline, found, missing, choices)


def _preview(
    outline: RunOutline,
    problems: Iterable[str],
    missing: Iterable[str] = (),
    choices: Callable[[Any], Choices] | None = None,
) -> RunPreview:
    config, unused = outline.config, unused_options(outline)
    found = [*problems, *unchanged("actor", config), *data_problems(outline), *tokenizer_problems(config)]
    if choices is None or any(True for _ in check_options(config.actor, "actor")):
        made = Choices()  # invalid options choose nothing
    else:
        made = choices(config)
    if refusal := refuse_when_strict(config.actor, (*unused, *made.changes), role="actor"):
        found.append(refusal)
    decisions = (*unused, *made.changes, *made.notes)
    return RunPreview(
        problems=tuple(found),
        missing=(*missing, *missing_path(outline)),
        decisions=decisions,
        unused=frozenset(decision.option for decision in unused),
    )
