"""From what a configuration asks to what the engine does: a pure function, and the decisions it took.

Options are never changed in place. What differs from the request is a ``Decision``; what cannot be honoured at all is
an error that names the option.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from archon_core.config.decisions import Decision
from archon_core.config.schema import EngineConfig
from archon_core.errors import ConfigError
from archon_core.layout import ParallelDims

DtypeName = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True)
class EffectiveConfig:
    """What an engine runs with.

    Attributes:
        device: ``cpu`` or ``cuda``.
        compute_dtype: type of forward and backward, and of exported weights.
        master_dtype: type in which weights are kept and updated.
        reduce_dtype: type in which gradients are summed over ranks.
        reshard_after_forward: whether FSDP frees whole weights between forward and backward.
        attn_type: attention backend; ``None`` takes the fastest that runs the model on the device.
        compile: whether blocks are compiled.
        pad_multiple: micro-batches are padded to a multiple of this many tokens.
        pad_at_least: and to no fewer than this.
    """

    device: str
    compute_dtype: DtypeName
    master_dtype: DtypeName
    reduce_dtype: DtypeName
    reshard_after_forward: bool
    attn_type: str | None
    compile: bool
    pad_multiple: int
    pad_at_least: int


def resolve_effective(
    config: EngineConfig,
    *,
    role: str,
    device: str,
    dims: ParallelDims | None = None,
    explicit: frozenset[str] = frozenset(),
) -> tuple[EffectiveConfig, list[Decision]]:
    """Decide everything that depends on more than one option, or on the device.

    Args:
        role: ``actor``, ``critic``, ``ref`` or ``teacher``: the prefix of option names in messages.
        device: ``cpu`` or ``cuda``.
        dims: sizes of the engine's axes; ``None`` for one process.
        explicit: dotted names of the options that the user wrote, as against defaults.

    Raises:
        ConfigError: an option asks for what this engine cannot do, or ``strict`` is set and a decision was needed.
    """
    dims = dims or ParallelDims()
    decisions: list[Decision] = []

    def decide(option: str, requested: object, effective: object, reason: str) -> None:
        decisions.append(Decision(f"{role}.{option}", _text(requested), _text(effective), reason))

    refusals = unsupported_options(config, role=role, explicit=explicit)
    if refusals:
        raise ConfigError("\n".join(refusals))
    compute: DtypeName = config.dtype or ("bfloat16" if device == "cuda" else "float32")  # type: ignore[assignment]
    if config.dtype is None:
        decide("dtype", None, compute, f"computation is in {compute} by default on {device}")
    # A model that is not trained has no small updates to keep: its weights are held as they are computed with.
    kept = "float32" if compute == "bfloat16" and config.optimizer is not None else compute
    master: DtypeName = config.archon.master_dtype or kept  # type: ignore[assignment]
    exact = "float64" if "float64" in (compute, master) else "float32"
    reduce: DtypeName = config.grad_reduce_dtype or exact  # type: ignore[assignment]
    alignment = dims.cp * dims.tp
    multiple = math.lcm(config.batch_align_to, alignment)
    if multiple != config.batch_align_to and config.batch_align_to > 1:
        reason = f"tokens are sharded over {alignment} ranks (cp x tp), so the padded length must be a multiple of both"
        decide("batch_align_to", config.batch_align_to, multiple, reason)
    if config.archon.enable_compile:
        decide("archon.enable_compile", True, False, "this version runs eager")
    if config.enable_tree_training:
        decide("enable_tree_training", True, False, "sequences are packed one by one; prefixes are not shared yet")
    if config.archon.strict:
        changed = [d for d in decisions if d.requested != _text(None)]
        if changed:
            lines = "\n  ".join(f"{d.option}: asked {d.requested}, would be {d.effective}: {d.reason}" for d in changed)
            raise ConfigError(f"{role}.archon.strict=true allows no change to what was asked; found\n  {lines}")
    effective = EffectiveConfig(
        device=device,
        compute_dtype=compute,
        master_dtype=master,
        reduce_dtype=reduce,
        reshard_after_forward=_reshard_after_forward(config.archon.reshard_after_forward_policy, dims),
        attn_type=config.archon.attn_type,
        compile=False,
        pad_multiple=multiple,
        pad_at_least=_pad_at_least(config, role),
    )
    return effective, decisions


def _text(value: object) -> str:
    return {None: "default", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload]


def _reshard_after_forward(policy: str, dims: ParallelDims) -> bool:
    """Pipelined stages run many micro-batches at once: freeing weights after each would gather them again and again."""
    return {"always": True, "never": False}.get(policy, dims.pp == 1)


def _pad_at_least(config: EngineConfig, role: str) -> int:
    if not config.pad_to_maximum:
        return 0
    if config.mb_spec.max_tokens_per_mb is None:
        raise ConfigError(
            f"{role}.pad_to_maximum: found true without a maximum; set {role}.mb_spec.max_tokens_per_mb, or "
            "pad_to_maximum=false"
        )
    return config.mb_spec.max_tokens_per_mb


def unsupported_options(config: EngineConfig, *, role: str, explicit: frozenset[str]) -> list[str]:
    """What ``config`` asks for and this version cannot do: one found / allowed / fix sentence each."""
    options = config.archon
    requests = [
        (config.gradient_checkpointing, "gradient_checkpointing", "true", "keeps all activations", "false"),
        (options.offload_params, "archon.offload_params", "true", "keeps parameters on the device", "false"),
        (
            options.use_deterministic_algorithms,
            "archon.use_deterministic_algorithms",
            "true",
            "has no deterministic mode",
            "false",
        ),
        (options.ac_debug, "archon.ac_debug", "true", "recomputes no activations", "false"),
        (
            options.enable_compile and f"{role}.archon.enable_compile" in explicit,
            "archon.enable_compile",
            "true",
            "runs eager",
            "false",
        ),
    ]
    return [
        f"{role}.{option}: found {value}; this version {what}; set it to {fix}"
        for asked, option, value, what, fix in requests
        if asked
    ]
