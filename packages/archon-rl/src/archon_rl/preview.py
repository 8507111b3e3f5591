"""What a dry run says of this package's algorithms: problems and unused options. Imports no torch.

An algorithm of another package that uses one of this package's trainers can name a function of this module as its
``preview``.
"""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.preview import RunOutline, RunPreview
from archon_engine.options.combinations import refuse_when_strict
from archon_rl.data_problems import data_problems, missing_path, tokenizer_problems
from archon_rl.run_problems import (
    equal_samples,
    explain_missing_reward,
    policy_problems,
    preference_problems,
    too_long_warmup,
    too_many_minibatches,
    untrained,
    value_head_problems,
    value_problems,
)
from archon_rl.teacher_options import is_pure_distillation
from archon_rl.unused_options import unused_options


def preview_sft(outline: RunOutline) -> RunPreview:
    """Supervised fine-tuning."""
    return _preview(outline, (*untrained("actor", outline.config), *value_head_problems(outline.config)))


def preview_dpo(outline: RunOutline) -> RunPreview:
    """Direct preference optimisation."""
    return _preview(outline, (*preference_problems(outline.config), *value_head_problems(outline.config)))


def preview_rw(outline: RunOutline) -> RunPreview:
    """Reward models."""
    return _preview(outline, preference_problems(outline.config))


def preview_grpo(outline: RunOutline) -> RunPreview:
    """Reinforcement learning without a critic."""
    return _preview_policy(outline, policy_problems(outline.config, relative=True))


def preview_ppo(outline: RunOutline) -> RunPreview:
    """Reinforcement learning with a critic."""
    config = outline.config
    problems = [*policy_problems(config)]
    if config.critic is not None:
        problems += value_problems(config)
        problems += too_many_minibatches("critic", config.critic.ppo_n_minibatches, config)
        if config.trainer.max_steps is not None:
            problems += too_long_warmup(config.critic.warmup_steps, config.trainer.max_steps)
    return _preview_policy(outline, problems)


def _preview_policy(outline: RunOutline, problems: Iterable[str]) -> RunPreview:
    config = outline.config
    found = [*problems, *too_many_minibatches("actor", config.actor.ppo_n_minibatches, config)]
    if config.eval_gconfig is not None:
        found += equal_samples("eval_gconfig", config.eval_gconfig)
    missing = []
    if config.reward is None and not is_pure_distillation(config.teacher):
        missing.append(explain_missing_reward(outline.algorithm.name))
    return _preview(outline, found, missing)


def _preview(outline: RunOutline, problems: Iterable[str], missing: Iterable[str] = ()) -> RunPreview:
    config, decisions = outline.config, unused_options(outline)
    found = [*problems, *data_problems(outline), *tokenizer_problems(config)]
    if refusal := refuse_when_strict(config.actor, decisions, role="actor"):
        found.append(refusal)
    return RunPreview(tuple(found), (*missing, *missing_path(outline)), tuple(decisions))
