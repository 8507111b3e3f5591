"""One engine to plan from command-line options: a model and a layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from archon_core.contracts.engine_config import ROLES, MicroBatchSpec, OptimizerConfig
from archon_core.errors import ConfigError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.models import find_model
from archon_plan.parts import EngineRequest, Sequences
from archon_plan.request import LENGTH, RunRequest

TOKENS = 32_768
"""Default of ``--tokens``."""

OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "archon.pp_schedule": "--schedule",
        "archon.ac_mode": "--ac-mode",
        "archon.offload_params": "--offload",
        "archon.enable_compile": "--compile",
        "dtype": "--dtype",
        "optimizer.type": "--optimizer",
        "is_critic": "--critic",
        "mb_spec.n_mbs": "--n-mbs",
        "mb_spec.max_tokens_per_mb": "--tokens",
        "backend": "--layout",
    }
)
"""Option of an engine's section -> the command-line option that sets it."""


@dataclass(frozen=True)
class EngineFlags:
    """One engine, as command-line options describe it; ``None`` for an option that the user left out.

    Attributes:
        model: a name, a file or a folder; see ``find_model``.
        layout: such as ``archon:d4t2``.
        role: the section that a configuration would have: ``actor``, ``critic``, ``ref``, ``teacher``.
        critic: whether the head gives one value per token; also for the role ``critic``.
        tokens: tokens of a micro-batch on each data rank.
        n_mbs: micro-batches of each data rank.
        seq: mean length of a sequence.
        sequences: of one step on all ranks together.
        schedule: pipeline schedule.
        ac_mode: mode of activation checkpointing.
        dtype: compute type.
        optimizer: its type.
        offload: whether parameters, gradients and optimizer states are in host memory.
        compile: whether blocks are compiled.
    """

    model: str
    layout: str
    role: str = "actor"
    critic: bool = False
    tokens: int | None = None
    n_mbs: int | None = None
    seq: int | None = None
    sequences: int | None = None
    schedule: str | None = None
    ac_mode: str | None = None
    dtype: str | None = None
    optimizer: str | None = None
    offload: bool | None = None
    compile: bool | None = None


def request_engine(flags: EngineFlags, *, device: str = "cuda") -> RunRequest:
    """One engine from command-line options. Gradients are checkpointed as ``--ac-mode`` says; all other options have
    the defaults of ``ArchonOptions``.

    Args:
        flags: the options.
        device: ``cuda`` or ``cpu``.

    Raises:
        ConfigError, ModelError: the model cannot be found or read, or the role does not exist.
    """
    if flags.role not in ROLES:
        raise ConfigError(f"--role: found {flags.role!r}; allowed are {', '.join(ROLES)}; choose one")
    model = find_model(flags.model)
    trains = flags.role in ("actor", "critic")
    written = {
        "archon.pp_schedule": flags.schedule,
        "archon.ac_mode": flags.ac_mode,
        "archon.offload_params": flags.offload,
        "archon.enable_compile": flags.compile,
        "dtype": flags.dtype,
        "optimizer.type": flags.optimizer,
        "mb_spec.n_mbs": flags.n_mbs,
        "mb_spec.max_tokens_per_mb": flags.tokens,
    }
    written = {name: value for name, value in written.items() if value is not None}
    options = {name.removeprefix("archon."): value for name, value in written.items() if name.startswith("archon.")}
    config = ArchonEngineConfig(
        backend=flags.layout,
        is_critic=flags.critic or flags.role in ("critic", "reward_model"),
        dtype=flags.dtype,
        gradient_checkpointing=trains,
        mb_spec=MicroBatchSpec(n_mbs=_or(flags.n_mbs, 1), max_tokens_per_mb=_or(flags.tokens, TOKENS)),
        optimizer=OptimizerConfig(type=flags.optimizer or "adamw") if trains else None,
        archon=ArchonOptions(**options),
    )
    length = min(_or(flags.seq, LENGTH), config.mb_spec.max_tokens_per_mb or LENGTH)
    engine = EngineRequest(
        role=flags.role,
        layout=flags.layout,
        model=model,
        config=config,
        sequences=Sequences(flags.sequences, length),
        explicit=frozenset(f"{flags.role}.{name}" for name in written),
        device=device,
    )
    return RunRequest((engine,), title=model.name)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def in_flags(text: str, role: str) -> str:
    """A message about an engine's options, with the command-line options that set them."""
    for option, flag in OPTIONS.items():
        text = text.replace(f"{role}.{option}", flag)
        if option.startswith("archon."):
            text = text.replace(f"{option}=", f"{flag} ").replace(option, flag)
    return text


def as_flags(options: Mapping[str, str]) -> list[str]:
    """Options of an engine's section as words of the command line."""
    words: list[str] = []
    for option, value in options.items():
        flag = OPTIONS.get(option)
        if flag is None:
            continue  # the command line has none, as for gradient_checkpointing, which follows from --ac-mode
        if value in ("true", "false"):
            words.append(flag if value == "true" else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, value]
    return words
