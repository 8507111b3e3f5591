"""From what a configuration asks to what the engine does: a pure function, and the decisions it took.

Options are never changed in place. What differs from the request is a ``Decision``; what cannot be honoured at all is
an error that names the option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archon_core.config.decisions import Decision
from archon_core.config.schema import EngineConfig
from archon_core.errors import ConfigError

DtypeName = Literal["float32", "float64"]


@dataclass(frozen=True)
class EffectiveConfig:
    """What an engine runs with.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: type of weights and computation.
        attn_type: attention backend; ``None`` takes the fastest that runs the model on the device.
        compile: whether blocks are compiled.
        pad_multiple: micro-batches are padded to a multiple of this many tokens.
        pad_at_least: and to no fewer than this.
    """

    device: str
    dtype: DtypeName
    attn_type: str | None
    compile: bool
    pad_multiple: int
    pad_at_least: int


def resolve_effective(
    config: EngineConfig, *, role: str, device: str, explicit: frozenset[str] = frozenset()
) -> tuple[EffectiveConfig, list[Decision]]:
    """Decide everything that depends on more than one option, or on the device.

    Args:
        role: ``actor``, ``critic``, ``ref`` or ``teacher``: the prefix of option names in messages.
        device: ``cpu`` or ``cuda``.
        explicit: dotted names of the options that the user wrote, as against defaults.

    Raises:
        ConfigError: an option asks for what this engine cannot do, or ``strict`` is set and a decision was needed.
    """
    decisions: list[Decision] = []

    def decide(option: str, requested: object, effective: object, reason: str) -> None:
        decisions.append(Decision(f"{role}.{option}", _text(requested), _text(effective), reason))

    refusals = unsupported_options(config, role=role, explicit=explicit)
    if refusals:
        raise ConfigError("\n".join(refusals))
    if config.dtype is None:
        decide("dtype", None, "float32", f"weights and computation are float32 by default on {device}")
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
        dtype=config.dtype or "float32",
        attn_type=config.archon.attn_type,
        compile=False,
        pad_multiple=config.batch_align_to,
        pad_at_least=_pad_at_least(config, role),
    )
    return effective, decisions


def _text(value: object) -> str:
    return {None: "default", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload]


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
        (config.dtype == "bfloat16", "dtype", "bfloat16", "computes in float32 or float64", "float32"),
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
