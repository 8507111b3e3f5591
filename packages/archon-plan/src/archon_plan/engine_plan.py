"""Turns a checked engine into a ``Setting``, with every decision that a run would take."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.pipeline import RankActions, StagePlan
from archon_core.layout import ParallelDims
from archon_engine.data.packing import plan_micro_batches
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.effective import EffectiveConfig, resolve_effective
from archon_engine.options.pipelines import micro_batch_decisions, micro_batch_divisor
from archon_plan.extents import context_decisions, token_multiple
from archon_plan.parts import EngineRequest, Parts, Sequences, forward_actions, plan_stages, schedule_actions
from archon_plan.setting import AuxiliaryLoss, Setting, SharedPrompt, Tokens, Types
from archon_plan.shared_prompts import n_prompts, tree_bins, tree_tokens
from archon_plan.violations import Check

BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class EnginePlan:
    """One engine, ready to be planned.

    Attributes:
        request: the engine and its options, as the user requested them.
        parts: its parts.
        effective: its options in effect.
        setting: what the planning functions take.
        decisions: the changes that a run would make, with reasons.
        notes: assumptions of the plan.
    """

    request: EngineRequest
    parts: Parts
    effective: EffectiveConfig
    setting: Setting
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        """Section of the configuration."""
        return self.request.role


def plan_engine(request: EngineRequest, check: Check) -> EnginePlan:
    """The plan of an engine that violates no constraint.

    Raises:
        ConfigError: options conflict; ``check_engine`` reports these before.
    """
    assert check.parts is not None, "only an engine without violations has a plan"
    assert check.dims is not None, "only an engine without violations has a plan"
    parts, dims, config = check.parts, check.dims, request.config
    effective, decisions = resolve_effective(
        config,
        role=request.role,
        device=request.device,
        dims=dims,
        explicit=request.explicit,
        schedule=parts.schedule,
    )
    decisions += context_decisions(parts.anatomy, dims, config, request.ranks_per_node, role=request.role)
    multiple = token_multiple(parts.anatomy, dims, config.archon.cp_style, request.ranks_per_node)
    effective = replace(effective, pad_multiple=math.lcm(effective.pad_multiple, multiple))
    spec, stages, divisor = config.mb_spec, None, 1
    if parts.schedule is not None and parts.pipeline is not None:
        stages = plan_stages(
            parts.anatomy,
            parts.pipeline,
            parts.schedule,
            n_ranks=dims.pp,
            options=config.archon,
            role=request.role,
        )
        decisions += micro_batch_decisions(
            spec, parts.schedule, n_ranks=dims.pp, n_stages=len(stages), role=request.role
        )
        divisor = micro_batch_divisor(parts.schedule, dims.pp)
        both = math.lcm(spec.n_mbs_divisor, divisor)
        spec = replace(spec, n_mbs=max(spec.n_mbs, len(stages)), n_mbs_divisor=both)
    at_least = 1 if stages is None else len(stages)
    tokens, notes = count_tokens(request, spec, effective, dims, at_least=at_least, divisor=divisor)
    trains = config.optimizer is not None
    setting = Setting(
        anatomy=parts.anatomy,
        dims=dims,
        tokens=tokens,
        types=Types(
            compute=BYTES[effective.compute_dtype],
            master=BYTES[effective.master_dtype],
            reduce=BYTES[effective.reduce_dtype],
        ),
        stages=stages,
        schedule=parts.schedule,
        actions=_actions(parts, stages, dims, tokens, trains=trains),
        checkpointing=effective.ac_mode,
        every=effective.ac_every,
        budget=effective.ac_memory_budget,
        optimizer=config.optimizer.type if config.optimizer is not None else "sgd",
        # The optimizers allocate their states like the parameters that they update.
        state_bytes=BYTES[effective.master_dtype],
        momentum=config.optimizer is not None and config.optimizer.beta1 > 0,
        reshards=effective.reshard_after_forward,
        reshards_last=effective.reshard_last,
        reduces_each=effective.reduce_each_micro_batch,
        offloads=effective.offload_params,
        compiles=effective.compile,
        trains=trains,
        entropy=request.entropy,
        aux_loss=_aux_loss(config) if parts.anatomy.has_experts and trains else "none",
        cp_style=config.archon.cp_style,
        ranks_per_node=request.ranks_per_node,
        aligned_to=config.batch_align_to,
        z_loss=bool(getattr(config.archon, "moe_z_loss_coef", 0.0)) and parts.anatomy.has_experts and trains,
    )
    return EnginePlan(request, parts, effective, setting, tuple(decisions), tuple(notes))


def _aux_loss(config: ArchonEngineConfig) -> AuxiliaryLoss:
    """What balances experts. The options are those of the package that builds them."""
    if not getattr(config.archon, "moe_aux_loss_coef", 0.0):
        return "none"
    return getattr(config.archon, "moe_aux_loss", "none")  # type: ignore[no-any-return]


def _actions(
    parts: Parts, stages: StagePlan | None, dims: ParallelDims, tokens: Tokens, *, trains: bool
) -> RankActions:
    if stages is None or parts.schedule is None:
        return ()
    if not trains:
        return forward_actions(stages, dims.pp, tokens.n_micro_batches)
    return schedule_actions(parts.schedule, stages, dims.pp, tokens.n_micro_batches)


def _bins(number: int, sequences: Sequences, spec: MicroBatchSpec) -> list[list[int]]:
    """The micro-batches of a data rank: indices of its sequences, of equal lengths."""
    limit, length = spec.max_tokens_per_mb, sequences.length
    return plan_micro_batches(
        [length] * number,
        n_mbs=spec.n_mbs,
        max_tokens_per_mb=None if limit is None else max(limit, length * spec.granularity),
        granularity=spec.granularity,
        n_mbs_divisor=spec.n_mbs_divisor,
        algorithm=spec.packing_algorithm,  # type: ignore[arg-type]
    )


def count_tokens(
    request: EngineRequest,
    spec: MicroBatchSpec,
    effective: EffectiveConfig,
    dims: ParallelDims,
    *,
    at_least: int = 1,
    divisor: int = 1,
) -> tuple[Tokens, list[str]]:
    """The micro-batches of one step, and assumptions about them.

    Sequences of equal lengths are assigned to micro-batches by the engine's own functions.

    Args:
        request: the engine.
        spec: the split into micro-batches, with the constraints of a pipeline.
        effective: the engine's options in effect, which have the padding.
        dims: sizes of all axes.
        at_least: micro-batches that a pipeline needs, filled or not: its number of stages.
        divisor: their number must be a multiple of this.
    """
    sequences, notes = request.sequences, []
    length, limit = sequences.length, spec.max_tokens_per_mb
    shares = request.config.enable_tree_training and sequences.shares_prompts
    if limit is not None and length > limit:
        notes.append(
            f"{request.role}: sequences of {length:,} tokens exceed mb_spec.max_tokens_per_mb {limit:,}, and a run "
            f"stops at one; planned with {limit:,} tokens each"
        )
        length = limit
        shares = shares and sequences.prompt < limit
    alike = replace(sequences, length=length) if shares else Sequences(length=length)
    # A sequence that is cut loses tokens of its completion.
    scored, shared = min(sequences.scored, (length - alike.prompt) / length), None
    if sequences.number is None:
        per_micro_batch = limit or length
        number = math.ceil(spec.n_mbs / spec.n_mbs_divisor) * spec.n_mbs_divisor
    else:
        on_rank = math.ceil(sequences.number / (dims.dp_replicate * dims.dp_shard))
        on_rank = math.ceil(on_rank / spec.granularity) * spec.granularity
        bins: Sequence[Collection[int]] = (tree_bins if shares else _bins)(on_rank, alike, spec)
        fullest = max(bins, key=lambda members: tree_tokens(alike, members))
        per_micro_batch = tree_tokens(alike, fullest)
        if shares and len(fullest) > n_prompts(alike, fullest):
            shared = SharedPrompt(alike.prompt, len(fullest) / n_prompts(alike, fullest))
            scored *= len(fullest) * length / per_micro_batch
            notes.append(
                f"{request.role}: {round(alike.samples, 1):g} samples share a prompt of {alike.prompt:,} tokens "
                f"(enable_tree_training): {sum(tree_tokens(alike, members) for members in bins):,} tokens on each data "
                f"rank in place of {on_rank * length:,}"
            )
        planned = sum(map(bool, bins))  # the engine runs no empty micro-batches, but where a pipeline needs them
        number = math.ceil(max(planned, at_least) / divisor) * divisor
        if planned < number:
            notes.append(
                f"{request.role}: {on_rank} sequences on each data rank fill {planned} of {number} micro-batches; the "
                "others are padding"
            )
    padded = max(per_micro_batch, effective.pad_at_least)
    padded = math.ceil(padded / effective.pad_multiple) * effective.pad_multiple
    return Tokens(padded, max(number, 1), min(length, padded), scored, shared), notes
