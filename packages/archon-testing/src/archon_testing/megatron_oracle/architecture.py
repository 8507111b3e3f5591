"""The architectures and layouts that this oracle can run on Megatron-Core. Imports neither torch nor Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import Layout

DISTRIBUTION = "megatron-core"
TESTED = "0.16.1"
MOST_RANKS = 4
LIMIT = 5e-6
"""Of relative errors. Both sides compute in float32 and sum in different orders: matrix products have other shapes,
attention is another kernel, sequences are padded. On the models for tests they differ by up to 3e-6."""

MODEL_TYPES = ("qwen2", "qwen3", "qwen3_moe")
"""Model types whose modules Megatron-Core has, with the Hugging Face names that ``weight_places`` knows."""


@dataclass(frozen=True)
class MegatronSizes:
    """The sizes of Megatron's parallel groups.

    Attributes:
        tensor: tensor parallel ranks of attention and dense blocks.
        pipeline: pipeline stages, one per rank.
        data: data ranks.
        expert: ranks that divide the experts; each expert is whole.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @classmethod
    def of(cls, layout: Layout, *, moe: bool) -> MegatronSizes:
        """The sizes of a layout that ``refusal`` accepts."""
        dims = layout.parallel_dims(moe=moe)
        return cls(dims.tp, dims.pp, dims.dp_replicate * dims.dp_shard, dims.ep)


def check_installed() -> str:
    """The installed version of Megatron-Core.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError:
        found = ""
    if not found or find_spec("megatron") is None:
        raise ConfigError(
            f"--oracle megatron: found no {DISTRIBUTION}; allowed is {TESTED}; install it with "
            "pip install 'archon-testing[megatron]'"
        )
    return found


def has_experts(entries: Mapping[str, Any]) -> bool:
    """Whether a configuration's model has experts."""
    return bool(entries.get("num_experts"))


def check_model(entries: Mapping[str, Any]) -> None:
    """Refuse models that the oracle cannot build.

    Raises:
        ConfigError: another architecture, or an option of it that Megatron-Core does not have.
    """
    found = entries["model_type"]
    if found not in MODEL_TYPES:
        raise ConfigError(
            f"--oracle megatron: found model type {found!r}; allowed are {', '.join(MODEL_TYPES)}; verify it without "
            "--oracle"
        )
    rope = entries.get("rope_parameters") or entries.get("rope_scaling") or {}
    unknown = {
        "use_sliding_window": bool(entries.get("use_sliding_window")),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "attention_bias": found != "qwen2" and bool(entries.get("attention_bias")),
        "hidden_act": entries.get("hidden_act", "silu") != "silu",
    }
    for name in (name for name, wrong in unknown.items() if wrong):
        raise ConfigError(
            f"--oracle megatron: found {name} {entries.get(name)!r}; Megatron's side is not built for it; allowed "
            "is the default; verify this model without --oracle"
        )


def refusal(layout: Layout, entries: Mapping[str, Any]) -> str:
    """Why Megatron-Core cannot run a model on a layout over gloo; empty if it can."""
    moe = has_experts(entries)
    try:
        dims = layout.parallel_dims(moe=moe)
    except LayoutError as error:
        return str(error)
    text = f"--oracle megatron: layout '{layout}'"
    if dims.cp > 1:
        return (
            f"{text}: found c{dims.cp}; allowed is c1, because Megatron-Core has context parallelism only with "
            "Transformer Engine, on GPUs; verify it without --oracle"
        )
    if dims.world_size > MOST_RANKS:
        return f"{text}: found {dims.world_size} ranks; allowed are at most {MOST_RANKS}; reduce the sizes"
    if moe and dims.tp > 1:
        return (
            f"{text}: found t{dims.tp} with experts; allowed is t1, because Megatron-Core trains experts on tensor "
            "ranks only with sequence parallelism, which it does not have on CPUs; verify it without --oracle"
        )
    if moe and dims.etp > 1:
        return f"{text}: found experts divided over {dims.etp} tensor ranks; allowed is 1; use e{dims.ep * dims.etp}"
    return _indivisible(text, dims.tp, dims.pp, dims.ep, entries)


def _indivisible(text: str, tensor: int, pipeline: int, expert: int, entries: Mapping[str, Any]) -> str:
    """The first size that Megatron-Core cannot divide; empty if there is none."""
    heads = entries["num_attention_heads"]
    sizes = (
        ("num_key_value_heads", entries.get("num_key_value_heads") or heads, "t", tensor),
        ("num_attention_heads", heads, "t", tensor),
        ("vocab_size", entries["vocab_size"], "t", tensor),
        ("intermediate_size", entries["intermediate_size"], "t", tensor),
        ("num_hidden_layers", entries["num_hidden_layers"], "p", pipeline),
        ("num_experts", entries.get("num_experts") or expert, "e", expert),
    )
    for name, size, letter, ranks in sizes:
        if size % ranks:
            return f"{text}: found {name} {size}; Megatron-Core divides it by {letter}{ranks}; use a divisor of {size}"
    return ""
