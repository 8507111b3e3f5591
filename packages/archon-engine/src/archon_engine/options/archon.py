"""The options of the Archon engine (``actor.archon``), in addition to those of every engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, SHARE, one_of, option
from archon_core.contracts.engine_config import DTYPE, EngineConfig
from archon_engine.options.combinations import refusals
from archon_engine.options.context import OptionContext
from archon_engine.options.context_style import CONTEXT_STYLES

BALANCED = "null balances stages by cost"


def _every_or_op(value: str) -> str | None:
    return None if re.fullmatch("op|0*[1-9][0-9]{0,8}", value) else "op, or a number N for every Nth layer"


def _first_and_last(steps: list[int]) -> str | None:
    is_range = len(steps) == 2 and 1 <= steps[0] <= steps[1]
    return None if is_range else "[first, last], two numbers of steps from 1, in this order"


@dataclass
class ArchonOptions:
    """Options of the Archon engine (``actor.archon``).

    Attributes:
        pp_schedule: pipeline schedule, for layouts with p above 1.
        pp_layers_per_stage: maximum number of layers per stage, which determines the number of stages; null uses as
            many stages as the schedule needs, or two per rank if it takes any number.
        pp_first_stage_less_layers: how many layers fewer the first stage has, in exchange for the embedding; null
            balances stages by cost.
        pp_last_stage_less_layers: how many layers fewer the last stage has, in exchange for the head; null balances
            stages by cost.
        pp_reduce_grad_per_microbatch: sum gradients over data ranks after every micro-batch, so that they stay sharded
            in between; false sums them once, at the end of the step.
        pp_record_step: number of an optimizer step, from 1. The engine times its pipeline actions and writes them to
            ``pipeline-<role>.json`` in the run folder, for ``archon pipeline show --run``; null records no step.
        profile_steps: first and last of the training steps, from 1, that are profiled: ``[2, 3]``. Every rank writes a
            trace of torch's profiler to ``profile/step-<number>/`` in the run folder, and on CUDA a memory snapshot.
            Only the actor's section has it: a trace covers all models of a process. Null profiles no step.
        enable_compile: compile every block with torch.compile; on a CPU only if you write the option.
        ac_mode: activation checkpointing: ``none``, ``selective``, ``full`` or ``memory_budget`` (needs
            ``enable_compile``). Takes effect if ``gradient_checkpointing`` is true.
        selective_ac_option: ``op`` keeps the results of matrix products, attention and collectives and recomputes the
            rest; a number N recomputes every Nth block as a whole.
        ac_memory_budget: share of activations that ``memory_budget`` keeps: 0.0 recomputes everything, 1.0 nothing.
        ac_debug: measure in the first step what every block keeps and recomputes, and write it to
            ``ac_debug-rank0.txt`` in the run folder.
        offload_params: keep parameters, gradients and optimizer state in host memory; a block's parameters are on the
            device while the block runs.
        reshard_after_forward_policy: ``always`` frees whole weights between forward and backward, ``never`` keeps them;
            ``default`` frees them, except for the last units and in a pipeline.
        use_deterministic_algorithms: make runs equal to the last bit.
        keep_freed_memory: a process that trains on a CPU keeps the memory that a step frees for the next step, instead
            of returning it to the system (with glibc).
        cp_style: how context ranks share attention. ``ulysses`` exchanges heads, so ``c`` x ``t`` must divide their
            number. ``gather`` collects keys and values on every rank, for any ``c``. ``hybrid`` exchanges heads among
            neighbouring ranks of a machine, as many as divide the heads, and gathers across them. ``auto`` is
            ``ulysses`` where ``c`` allows it, else ``hybrid``, and ``gather`` if no part of ``c`` divides the heads.
        attn_type: attention kernel: ``varlen``, ``flex`` or ``sdpa``; null chooses by device.
        moe_router_dtype: compute type of routers: ``fp32``, or null for that of the model.
        master_dtype: type of the stored and updated weights; null uses float32 beside bfloat16 computation, and
            ``dtype`` for a model that is not trained.
        model: model spec to use; null chooses by the checkpoint's ``model_type``.
        moe: mixture-of-experts block to use; null uses the only installed one.
        moe_routing_replay: send the tokens of rollouts to the experts that the rollout chose, in every pass of this
            engine, instead of routing them again. Needs ``rollout.return_routed_experts``.
        strict: turn every decision that changes a setting into an error.
    """

    pp_schedule: str = "Interleaved1F1B"
    pp_layers_per_stage: int | None = option(None, POSITIVE)
    pp_first_stage_less_layers: int | None = option(None, NOT_NEGATIVE, fix=BALANCED)
    pp_last_stage_less_layers: int | None = option(None, NOT_NEGATIVE, fix=BALANCED)
    pp_reduce_grad_per_microbatch: bool = False
    pp_record_step: int | None = option(None, POSITIVE)
    profile_steps: list[int] | None = field(default=None, metadata={"rule": _first_and_last, "fix": ""})
    enable_compile: bool = True
    ac_mode: str = option("selective", one_of("none", "selective", "full", "memory_budget"))
    selective_ac_option: str = option("op", _every_or_op)
    ac_memory_budget: float = option(0.5, SHARE)
    ac_debug: bool = False
    offload_params: bool = False
    reshard_after_forward_policy: str = option("default", one_of("default", "always", "never"))
    use_deterministic_algorithms: bool = False
    keep_freed_memory: bool = True
    cp_style: str = option("auto", one_of(*CONTEXT_STYLES))
    attn_type: str | None = option(None, one_of("varlen", "flex", "sdpa"))
    moe_router_dtype: str | None = option("fp32", one_of("fp32"), fix="null takes the compute type")
    master_dtype: str | None = option(None, DTYPE)
    model: str | None = None
    moe: str | None = None
    moe_routing_replay: bool = False
    strict: bool = False


@dataclass
class ArchonEngineConfig(EngineConfig):
    """One model that the Archon engine runs.

    Attributes:
        archon: options of the Archon engine.
    """

    archon: ArchonOptions = field(default_factory=ArchonOptions)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Conflicting options."""
        yield from refusals(OptionContext(self))
