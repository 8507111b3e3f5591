"""Turns the options of a configuration into the options in effect: a pure function that also returns its decisions.

It changes no option in place. Every difference from the configuration is a ``Decision``; a value that cannot be
honoured is an error that names the option. The padding needs the model's heads, too: ``context_style`` decides it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from archon_core.contracts.decisions import Decision
from archon_core.contracts.pipeline import ScheduleSpec
from archon_core.errors import ConfigError
from archon_core.layout import ParallelDims
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.combinations import (
    changes,
    refusals,
    refuse_when_strict,
    shown,
)
from archon_engine.options.context import OptionContext

DtypeName = Literal["float32", "float64", "bfloat16"]
AcMode = Literal["none", "selective", "full", "memory_budget"]


@dataclass(frozen=True)
class EffectiveConfig:
    """An engine's options in effect.

    Attributes:
        device: ``cpu`` or ``cuda``.
        compute_dtype: type of forward and backward, and of exported weights.
        master_dtype: type in which weights are kept and updated.
        reduce_dtype: type in which gradients are summed over ranks.
        reshard_after_forward: whether FSDP frees whole weights between forward and backward.
        reshard_last: whether it also frees those of the last units, whose backward comes first.
        offload_params: whether parameters, gradients and optimizer state live in host memory, and the device holds the
            parameters of a block while it runs.
        attn_type: attention backend; ``None`` chooses the fastest that runs the model on the device.
        compile: whether blocks are compiled.
        ac_mode: mode of activation checkpointing.
        ac_every: with ``selective``, every Nth block is recomputed; ``None`` recomputes by operation, in all blocks.
        ac_memory_budget: with ``memory_budget``, the share of activations that is kept.
        ac_debug: whether the first step measures what is kept and recomputed.
        deterministic: whether runs are bit-identical.
        reduce_each_micro_batch: whether a pipeline sums gradients over data ranks after every micro-batch.
        pad_multiple: micro-batches are padded to a multiple of this many tokens. How context ranks share attention may
            need a larger one (``context_style.padding_decision``).
        pad_at_least: micro-batches are padded to at least this many tokens.
    """

    device: str
    compute_dtype: DtypeName
    master_dtype: DtypeName
    reduce_dtype: DtypeName
    reshard_after_forward: bool
    reshard_last: bool
    offload_params: bool
    attn_type: str | None
    compile: bool
    ac_mode: AcMode
    ac_every: int | None
    ac_memory_budget: float
    ac_debug: bool
    deterministic: bool
    reduce_each_micro_batch: bool
    pad_multiple: int
    pad_at_least: int


def resolve_effective(
    config: ArchonEngineConfig,
    *,
    role: str,
    device: str,
    dims: ParallelDims | None = None,
    explicit: frozenset[str] = frozenset(),
    schedule: ScheduleSpec | None = None,
) -> tuple[EffectiveConfig, list[Decision]]:
    """Decide everything that depends on more than one option, or on the device.

    Args:
        role: ``actor``, ``critic``, ``ref`` or ``teacher``: the prefix of option names in messages.
        device: ``cpu`` or ``cuda``.
        dims: sizes of the engine's axes; ``None`` for one process.
        explicit: dotted names of the options that the user wrote, as against defaults.
        schedule: the pipeline schedule; ``None`` without a pipeline.

    Raises:
        ConfigError: options conflict (``options.combinations``), or ``strict`` is set and a decision would be needed.
    """
    dims = dims or ParallelDims()
    options = config.archon
    context = OptionContext.of(
        config,
        role,
        explicit,
        device=device,
        pipeline_ranks=dims.pp,
        schedule=schedule,
        context_ranks=dims.cp,
    )
    wrong = [f"{role}.{option}: {text}" for option, text in refusals(context)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    used, decisions = changes(context, role=role)
    if refusal := refuse_when_strict(config, decisions, role=role):
        raise ConfigError(refusal)
    compute: DtypeName = config.dtype or ("bfloat16" if device == "cuda" else "float32")  # type: ignore[assignment]
    if config.dtype is None:
        reason = f"computation is in {compute} by default on {device}"
        decisions.insert(0, Decision(f"{role}.dtype", shown(None), compute, reason))
    # A model that is not trained has no small updates to preserve, so its weights are stored in the compute dtype.
    kept = "float32" if compute == "bfloat16" and config.optimizer is not None else compute
    master: DtypeName = options.master_dtype or kept  # type: ignore[assignment]
    exact = "float64" if "float64" in (compute, master) else "float32"
    reduce: DtypeName = config.grad_reduce_dtype or exact  # type: ignore[assignment]
    every_nth = context.ac_mode == "selective" and options.selective_ac_option != "op"
    effective = EffectiveConfig(
        device=device,
        compute_dtype=compute,
        master_dtype=master,
        reduce_dtype=reduce,
        reshard_after_forward=_reshard_after_forward(options.reshard_after_forward_policy, dims),
        reshard_last=options.reshard_after_forward_policy == "always",
        offload_params=used.get("archon.offload_params", options.offload_params),
        attn_type=options.attn_type,
        compile=used.get("archon.enable_compile", options.enable_compile),
        ac_mode=used.get("archon.ac_mode", context.ac_mode),  # type: ignore[arg-type]
        ac_every=int(options.selective_ac_option) if every_nth else None,
        ac_memory_budget=options.ac_memory_budget,
        ac_debug=options.ac_debug,
        deterministic=options.use_deterministic_algorithms,
        reduce_each_micro_batch=options.pp_reduce_grad_per_microbatch,
        pad_multiple=math.lcm(config.batch_align_to, dims.cp * dims.tp),
        pad_at_least=config.mb_spec.max_tokens_per_mb or 0 if config.pad_to_maximum else 0,
    )
    return effective, decisions


def _reshard_after_forward(policy: str, dims: ParallelDims) -> bool:
    """By default not in a pipeline: stages run many micro-batches, and would gather freed weights again for each."""
    return {"always": True, "never": False}.get(policy, dims.pp == 1)
