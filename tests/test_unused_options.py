"""Every option of the schema, for every algorithm: a run uses it, refuses it, or records that it does not use it.

The engine's own options (``*.archon``) have separate tables (``test_engine_options``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.config.validation import check_options
from archon_core.contracts.decisions import Decision
from archon_core.errors import ArchonError
from archon_core.plugins import AlgorithmSpec, registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run

MODEL = "{model_type: qwen3, num_attention_heads: 2, num_key_value_heads: 1}"
TAUGHT = f"""
actor: {{backend: 'archon:d1', model_config: {MODEL}, optimizer: {{lr_scheduler_type: wsd}}}}
tokenizer: {{kind: bpe}}
data: {{dataset: hf, path: openai/gsm8k, validation_size: 2}}
"""
SAMPLED = """
reward: gsm8k
gconfig: {n_samples: 4}
eval_gconfig: {n_samples: 4}
ref: {}
teacher: {engine_type: train, path: large/model}
"""
BASES = {
    "sft": TAUGHT,
    "grpo": TAUGHT + SAMPLED,
    "ppo": TAUGHT + SAMPLED + "critic: {}\n",
    "dpo": TAUGHT + "ref: {}\nwarm_start: {steps: 2}\n",
    "rw": TAUGHT,
    "distillation": TAUGHT + SAMPLED.replace("engine_type: train", "engine_type: train, rl_loss_weight: 0"),
}
"""Algorithm, or grpo with a teacher alone -> a run with every section that the algorithm can use."""

CHOOSES_SECTIONS = ("algorithm", "data.dataset")
"""Options that change the schema itself."""

MODEL_OPTIONS = (
    *("backend", "path", "init_from_scratch", "model_config", "dtype", "disable_dropout", "batch_align_to"),
    "enable_tree_training",
    *("mb_spec.n_mbs", "mb_spec.max_tokens_per_mb", "mb_spec.granularity", "mb_spec.n_mbs_divisor"),
    "mb_spec.packing_algorithm",
)
OPTIMIZER = (
    *("type", "lr", "weight_decay", "beta1", "beta2", "eps", "gradient_clipping", "lr_scheduler_type"),
    "warmup_steps_proportion",
)
TRAINED_OPTIONS = (
    *MODEL_OPTIONS,
    *("grad_reduce_dtype", "gradient_checkpointing"),
    *(f"optimizer.{name}" for name in OPTIMIZER),
)


def of(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


COMMON = (
    *("experiment_name", "trial_name", "seed", "cluster.*", "stats_logger.*.mode", "stats_logger.tensorboard.path"),
    *("stats_logger.prometheus.port", "profiler.trace_steps", "profiler.memory_steps"),
    "*.use_lora",
    *("actor.scheduling_spec", "*.scheduling_strategy"),  # what they hold is checked in archon-train
    *of("actor", *TRAINED_OPTIONS, "optimizer.decay_steps_proportion", "optimizer.min_lr_ratio"),
    *of("data", "path", "validation_path", "validation_size", "prompt_key", "batch_size", "max_length", "overlong"),
    *of("data", "shuffle", "hf.*"),
    *of("trainer", "max_steps", "max_epochs", "save_every", "async_save", "keep_last", "eval_every", "eval_size"),
    *of("trainer", "eval_before_train", "resume", "auto_resume", "max_restarts", "accept_changed", "verify_export"),
)
PAIRS = of("data", "chosen_key", "rejected_key", "equal_pairs")
GENERATION = (
    *("n_samples", "max_new_tokens", "min_new_tokens", "max_tokens", "temperature", "frequency_penalty", "top_p"),
    *("stop_token_ids", "stop", "ignore_eos"),
)
POLICY = (
    *("reward", "data.answer_key", "rewards.*", "warm_start.steps", "trainer.eval_pass_above", "enable_offload"),
    *of("actor", "ppo_n_minibatches", "eps_clip", "eps_clip_higher", "c_clip", "importance_sampling_level"),
    *of("actor", "use_sapo_loss", "use_decoupled_loss", "reward_norm", "reward_scaling", "reward_bias", "reward_clip"),
    *of("actor", "mask_no_eos_with_zero", "overlong_filtering", "dynamic_sampling", "discount", "gae_lambda"),
    *of(
        "actor",
        "gae_timestep_unit",
        "adv_norm",
        "kl_ctl",
        "recompute_logprob",
        "loss_aggregation",
        "kl_loss_coef",
        "entropy_coef",
    ),
    *of("ref", *MODEL_OPTIONS),
    *of("teacher", *MODEL_OPTIONS, "offload", "rl_loss_weight", "distill_loss_weight", "baseline", "warm_start.steps"),
    *of("rollout", "backend", "max_batch_size", "check_trajectory_format", "dump_to_file", "enable_rollout_tracing"),
    *of("gconfig", *(name for name in GENERATION if name not in ("min_new_tokens", "frequency_penalty"))),
    *of("eval_gconfig", *GENERATION),
)
VALUES = (
    *of("critic", *TRAINED_OPTIONS, "is_critic", "ppo_n_minibatches", "eps_clip", "warmup_steps", "gae_lambda"),
    *of("critic", "mask_no_eos_with_zero", "bootstrap_truncated"),
)
USED = {
    "sft": (*COMMON, "actor.temperature", "data.answer_key"),
    "grpo": (*COMMON, *POLICY),
    "ppo": (*COMMON, *POLICY, *VALUES),
    "dpo": (
        *(*COMMON, *PAIRS, "warm_start.*"),
        *of("actor", "temperature", "beta", "loss_type"),
        *of("ref", *(name for name in MODEL_OPTIONS if name != "mb_spec.granularity")),
    ),
    "rw": (*COMMON, *PAIRS, "actor.is_critic"),
    "distillation": (
        *(*COMMON, *(option for option in POLICY if not option.startswith(("actor.", "ref.")))),
        *of("actor", "ppo_n_minibatches", "overlong_filtering", "recompute_logprob", "loss_aggregation"),
        *of("actor", "kl_loss_coef", "entropy_coef"),
    ),
}
"""Case of ``BASES`` -> the options that change what a run with the configuration of ``BASES`` does."""

NOTED = {
    *("teacher.distill_loss_weight", "critic.mask_no_eos_with_zero", "critic.bootstrap_truncated"),
    *("actor.mask_no_eos_with_zero", "trainer.auto_resume", "trainer.max_restarts", "teacher.init_from_scratch"),
    *("actor.path", "gconfig.n_samples", "actor.reward_norm", "actor.adv_norm"),
}
"""Used options with decisions about the form that they have, or with values that are refused."""

OTHER: dict[str, Any] = {
    "actor.model_config": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2},
    "backend": "archon:d1t1c1",
    "reward": "arithmetic",
    "rollout.backend": "served:d1",
    "gae_lambda_kwargs": {"alpha": 1.0},
    "peft_type": "dora",
}
"""Options, or last names of options, for which ``other_value`` finds no suitable value."""


def leaves(section: Any, path: str = "") -> Iterator[str]:
    """The dotted names of all options."""
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name


def put(section: Any, option: str, value: Any) -> Any:
    """The section with another value of an option."""
    name, _, rest = option.partition(".")
    return dataclasses.replace(section, **{name: put(getattr(section, name), rest, value) if rest else value})


def other_value(config: Any, option: str) -> Any:
    """A valid value that differs from that of the configuration."""
    *parents, name = option.split(".")
    for known in (option, name):
        if known in OTHER:
            return OTHER[known]
    section = config
    for parent in parents:
        section = getattr(section, parent)
    value, hint = getattr(section, name), get_type_hints(type(section))[name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [7] if int in kinds else ["data"]
    if dataclasses.is_dataclass(kinds[0]):
        return kinds[0]()
    rule = next(field for field in dataclasses.fields(section) if field.name == name).metadata.get("rule")
    choices = ((rule and rule("?")) or "").split(", ") if str in kinds else []
    candidates: dict[Any, tuple[Any, ...]] = {
        float: (0.5, 2.0, -0.5),
        int: (1, 2, 3),
        str: (*choices, "other"),
        dict: ({"model_type": "qwen3"},),
        list: (["x"],),
    }
    plain = {get_origin(kind) or kind for kind in kinds}
    values = next(candidates[kind] for kind in candidates if kind in plain)
    return next(one for one in values if one not in (value, "") and (rule is None or rule(one) is None))


Outcome = tuple[set[str], set[Decision]]
"""The reasons why a run does not start, and its decisions."""


def outcome(loaded: LoadedConfig, spec: AlgorithmSpec) -> Outcome:
    refused = {text for _, text in check_options(loaded.config)}
    if refused:
        return refused, set()
    plan = plan_run(loaded, registry())
    refused |= {obstacle.text for obstacle in plan.obstacles} | {need.package.name for need in plan.needs}
    decisions = [*plan.decisions, *plan.engine_decisions]
    try:
        spec.load()(loaded.config, decisions)
    except ArchonError as error:
        refused.add(str(error))
    return refused, set(decisions)


def explained(option: str, decisions: set[Decision]) -> bool:
    """Whether a decision is about the option, or names it among those of its section."""
    return any(
        option == d.option or (option.startswith(f"{d.option}.") and f"{option[len(d.option) + 1 :]}=" in d.requested)
        for d in decisions
    )


def silent(case: str, tmp_path: Path) -> Mapping[str, Any]:
    """The options that a run neither refuses nor records, with the value that was tried."""
    file = tmp_path / "run.yaml"
    algorithm = "grpo" if case == "distillation" else case
    file.write_text(f"algorithm: {algorithm}\n{BASES[case]}", encoding="utf-8")
    loaded, spec = load_config(file), registry().get(AlgorithmSpec, algorithm)
    refused, decisions = outcome(loaded, spec)
    assert not refused
    found = {}
    for option in leaves(loaded.config):
        if ".archon." in option or option in CHOOSES_SECTIONS:
            continue
        value = other_value(loaded.config, option)
        changed = dataclasses.replace(
            loaded, config=put(loaded.config, option, value), explicit=loaded.explicit | {option}
        )
        now_refused, now_decided = outcome(changed, spec)
        if not now_refused and not explained(option, now_decided - decisions):
            found[option] = value
    return found


@pytest.mark.parametrize("case", BASES)
def test_an_option_is_used_refused_or_recorded_as_unused(case: str, tmp_path: Path) -> None:
    found, used = silent(case, tmp_path), USED[case]
    assert not {option: value for option, value in found.items() if not any(fnmatchcase(option, u) for u in used)}
    stale = {one for one in used if one not in NOTED and not any(fnmatchcase(option, one) for option in found)}
    assert not stale, "listed as used, and refused or recorded"
