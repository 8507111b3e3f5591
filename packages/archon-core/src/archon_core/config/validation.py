"""Values that options may take beyond their types: choices, ranges, and options that need one another.

The rules stand beside the schema, one table per dataclass, and hold wherever that dataclass is used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from archon_core.config.combinations import refusals
from archon_core.config.schema import (
    ArchonOptions,
    ClusterConfig,
    DataConfig,
    EngineConfig,
    ExperimentConfig,
    MicroBatchSpec,
    OptimizerConfig,
    RolloutConfig,
    TokenizerConfig,
    TrainerConfig,
)
from archon_core.config.situation import Situation
from archon_core.errors import did_you_mean
from archon_core.generation import GenerationConfig

MAX_NAME_BYTES = 255
MAX_PATH_LENGTH = 4000
MAX_SHOWN = 200
"""What file systems and kernels take, rounded down."""

Rule = Callable[[Any], str | None]
"""Takes a value, which is not null, and returns what is allowed when that is not it."""


def one_of(*choices: str) -> Rule:
    """The value is one of these texts."""

    def rule(value: str) -> str | None:
        return None if value in choices else ", ".join(choices) + did_you_mean(value, choices)

    return rule


def number(
    *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """The value is finite and in this range."""
    parts = [
        f"from {least:g}" if least > -math.inf else "",
        f"above {above:g}" if above > -math.inf else "",
        f"up to {most:g}" if most < math.inf else "",
        f"below {below:g}" if below < math.inf else "",
    ]
    allowed = "numbers " + " ".join(filter(None, parts)) if any(parts) else "finite numbers"

    def rule(value: float) -> str | None:
        # Whole numbers are compared as they are: math.isfinite would turn those of 400 digits into floats, and fail.
        finite = isinstance(value, int) or math.isfinite(value)
        return None if finite and least <= value <= most and above < value < below else allowed

    return rule


def _folder_name(value: str) -> str | None:
    if value.strip() and value not in (".", "..") and not set(value) & set("/\\\0\n") and not _is_too_long(value):
        return None
    return f"the name of a folder, without slashes, of at most {MAX_NAME_BYTES} bytes"


def _path(value: str) -> str | None:
    """A path that the operating system can look for, or a hub id."""
    if "\0" in value or _is_too_long(value) or len(value) > MAX_PATH_LENGTH:
        return f"a path without NUL characters, whose names have at most {MAX_NAME_BYTES} bytes each, or a hub id"
    try:
        Path(value).expanduser()
    except RuntimeError:
        return "a path; '~NAME' stands for the home folder of a user of this machine, './~NAME' for a folder here"
    return None


def _is_too_long(path: str) -> bool:
    return any(len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES for name in path.split("/"))


def _every_or_op(value: str) -> str | None:
    return None if value == "op" or (value.isdecimal() and int(value) > 0) else "op, or a number N for every Nth layer"


def _token_ids(value: Sequence[int]) -> str | None:
    return None if all(token >= 0 for token in value) else "token ids, which are not negative"


def _each_one_of(*choices: str) -> Rule:
    def rule(values: Sequence[str]) -> str | None:
        wrong = next((value for value in values if value not in choices), None)
        return None if wrong is None else f"a list of {', '.join(choices)}{did_you_mean(wrong, choices)}"

    return rule


POSITIVE = number(least=1)
NOT_NEGATIVE = number(least=0)
SHARE = number(least=0, most=1)
DECAY = number(least=0, below=1)

RULES: dict[type, dict[str, Rule]] = {
    MicroBatchSpec: {
        "n_mbs": POSITIVE,
        "max_tokens_per_mb": POSITIVE,
        "granularity": POSITIVE,
        "n_mbs_divisor": POSITIVE,
        "packing_algorithm": one_of("ffd", "kk"),
    },
    OptimizerConfig: {
        "type": one_of("adamw", "adam", "sgd", "muon"),
        "lr": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "beta1": DECAY,
        "beta2": DECAY,
        "eps": number(above=0),
        "gradient_clipping": NOT_NEGATIVE,
        "lr_scheduler_type": one_of("constant", "linear", "cosine", "wsd"),
        "warmup_steps_proportion": SHARE,
        "decay_steps_proportion": SHARE,
        "min_lr_ratio": SHARE,
    },
    ArchonOptions: {
        "pp_layers_per_stage": POSITIVE,
        "pp_first_stage_less_layers": NOT_NEGATIVE,
        "pp_last_stage_less_layers": NOT_NEGATIVE,
        "pp_record_step": POSITIVE,
        "ac_mode": one_of("none", "selective", "full", "memory_budget"),
        "selective_ac_option": _every_or_op,
        "ac_memory_budget": SHARE,
        "reshard_after_forward_policy": one_of("default", "always", "never"),
        "attn_type": one_of("varlen", "flex", "sdpa"),
        "moe_router_dtype": one_of("fp32"),
        "master_dtype": one_of("float32", "bfloat16", "float64"),
    },
    EngineConfig: {
        "path": _path,
        "dtype": one_of("float32", "bfloat16", "float64"),
        "grad_reduce_dtype": one_of("float32", "bfloat16", "float64"),
        "temperature": number(above=0),
        "batch_align_to": POSITIVE,
    },
    RolloutConfig: {"max_batch_size": POSITIVE},
    ClusterConfig: {"n_nodes": POSITIVE, "n_gpus_per_node": POSITIVE, "fileroot": _path},
    TokenizerConfig: {"kind": one_of("pretrained", "characters", "bpe"), "vocab_size": POSITIVE},
    DataConfig: {
        "path": _path,
        "validation_path": _path,
        "validation_size": NOT_NEGATIVE,
        "batch_size": POSITIVE,
        "max_length": POSITIVE,
        "overlong": one_of("error", "drop"),
    },
    TrainerConfig: {
        "max_steps": POSITIVE,
        "max_epochs": POSITIVE,
        "save_every": NOT_NEGATIVE,
        "keep_last": POSITIVE,
        "keep_every": POSITIVE,
        "accept_changed": _each_one_of("data", "validation", "tokenizer", "chat_template", "reward"),
        "max_restarts": NOT_NEGATIVE,
        "eval_every": NOT_NEGATIVE,
        "eval_size": POSITIVE,
    },
    GenerationConfig: {
        "n_samples": POSITIVE,
        "max_new_tokens": POSITIVE,
        "min_new_tokens": NOT_NEGATIVE,
        "max_tokens": POSITIVE,
        "temperature": number(above=0),
        "top_p": number(above=0, most=1),
        "top_k": NOT_NEGATIVE,
        "stop_token_ids": _token_ids,
    },
    ExperimentConfig: {"experiment_name": _folder_name, "trial_name": _folder_name, "tokenizer_path": _path},
}
"""Dataclass -> option -> rule. Null is allowed where the option's type allows it."""

FIXES = {
    "temperature": "for the most probable token, set gconfig.greedy=true",
    "top_k": "0 keeps all tokens",
    "gradient_clipping": "0 switches it off",
    "moe_router_dtype": "null takes the compute type",
    "pp_first_stage_less_layers": "null balances stages by cost",
    "pp_last_stage_less_layers": "null balances stages by cost",
    "keep_last": "null keeps all checkpoints",
}
"""Option -> what to say beside the allowed values."""


def check_options(config: Any, path: str = "") -> list[tuple[str, str]]:
    """All values that are not allowed.

    Args:
        config: a section, or the whole configuration.
        path: the section's dotted name.

    Returns:
        Dotted name of the option and a found / allowed / fix sentence, for each.
    """
    return list(_check(config, path))


def _check(section: Any, path: str) -> Iterator[tuple[str, str]]:
    for cls, rules in RULES.items():
        if isinstance(section, cls):
            for name, rule in rules.items():
                value = getattr(section, name)
                allowed = None if value is None else rule(value)
                if allowed is not None:
                    option = f"{path}.{name}".lstrip(".")
                    fix = f"; {FIXES[name]}" if name in FIXES else ""
                    yield option, f"{option}: found {_shown(value)}; allowed are {allowed}{fix}"
    for cls, check in _TOGETHER.items():
        if isinstance(section, cls):
            for name, text in check(section):
                option = f"{path}.{name}".lstrip(".")
                yield option, f"{option}: {text}"
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _check(value, f"{path}.{f.name}".lstrip("."))


def _engine(engine: EngineConfig) -> Iterator[tuple[str, str]]:
    yield from refusals(Situation(engine))


def _optimizer(optimizer: OptimizerConfig) -> Iterator[tuple[str, str]]:
    used = optimizer.warmup_steps_proportion + optimizer.decay_steps_proportion
    if optimizer.lr_scheduler_type == "wsd" and used > 1:
        yield (
            "decay_steps_proportion",
            f"found warm-up and decay that together take {used:g} of all steps; allowed is up to 1; lower one of them",
        )


def _generation(generation: GenerationConfig) -> Iterator[tuple[str, str]]:
    if generation.min_new_tokens > generation.max_new_tokens:
        yield (
            "min_new_tokens",
            f"found {generation.min_new_tokens}, above max_new_tokens {generation.max_new_tokens}; lower it",
        )


def _trainer(trainer: TrainerConfig) -> Iterator[tuple[str, str]]:
    if trainer.keep_every is not None and trainer.keep_last is None:
        yield (
            "keep_every",
            f"found {trainer.keep_every} without trainer.keep_last, which keeps all checkpoints; set keep_last, or "
            "leave keep_every out",
        )


_TOGETHER: dict[type, Callable[[Any], Iterator[tuple[str, str]]]] = {
    EngineConfig: _engine,
    OptimizerConfig: _optimizer,
    GenerationConfig: _generation,
    TrainerConfig: _trainer,
}


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else f"{value}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
