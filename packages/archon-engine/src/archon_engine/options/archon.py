"""The options of the Archon engine (``actor.archon``), beside those that every engine has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, SHARE, one_of, option
from archon_core.contracts.engine_config import DTYPE, EngineConfig
from archon_engine.options.combinations import refusals
from archon_engine.options.context import OptionContext

BALANCED = "null balances stages by cost"


def _every_or_op(value: str) -> str | None:
    return None if re.fullmatch("op|0*[1-9][0-9]{0,8}", value) else "op, or a number N for every Nth layer"


@dataclass
class ArchonOptions:
    """Options of the Archon engine (``actor.archon``).

    Attributes:
        pp_schedule: pipeline schedule; used when the layout has p above 1.
        pp_layers_per_stage: most layers of a stage, from which the number of stages follows; null takes as many stages
            as the schedule needs, two per rank where it takes any number.
        pp_first_stage_less_layers: by how many layers the first stage is shorter, which also has the embedding; null
            balances by cost.
        pp_last_stage_less_layers: the same of the last stage, which also has the head.
        pp_reduce_grad_per_microbatch: sum gradients over data ranks after every micro-batch, which keeps them sharded
            in between; false sums them once, at the end of the step.
        pp_record_step: number of the optimizer step, from 1, whose pipeline actions are timed and written to
            ``pipeline-<role>.json`` in the run folder, for ``archon pipeline show --run``; null times none.
        enable_compile: torch.compile of every block; on a CPU only when it is written.
        ac_mode: activation checkpointing: ``none``, ``selective``, ``full`` or ``memory_budget`` (needs
            ``enable_compile``). Takes effect when ``gradient_checkpointing`` is true.
        selective_ac_option: ``op`` keeps what matrix products, attention and collectives gave and recomputes the rest;
            N recomputes every Nth block as a whole.
        ac_memory_budget: share of activations that ``memory_budget`` keeps: 0.0 recomputes everything, 1.0 nothing.
        ac_debug: measure in the first step what every block keeps and recomputes, and write it to
            ``ac_debug-rank0.txt`` in the run folder.
        offload_params: keep parameters, gradients and optimizer state in host memory; a block's parameters are on the
            device while it runs.
        reshard_after_forward_policy: ``always`` frees whole weights between forward and backward, ``never`` keeps
            them; ``default`` keeps those of the last units, and all of them in a pipeline.
        use_deterministic_algorithms: bit-identical runs.
        attn_type: ``varlen``, ``flex`` or ``sdpa``; null chooses by device.
        moe_router_dtype: ``fp32``, or null for the compute type.
        master_dtype: type in which weights are kept and updated; null takes float32 beside bfloat16 computation, and
            ``dtype`` where nothing is trained.
        model: name of the model spec to use; null chooses by the checkpoint's ``model_type``.
        moe: name of the mixture-of-experts block; null takes the only one installed.
        moe_routing_replay: tokens of rollouts go to the experts that they went to there, in every pass of this engine,
            instead of where its own routers would send them. Needs ``rollout.return_routed_experts``.
        strict: a decision that changes what was asked is an error.
    """

    pp_schedule: str = "Interleaved1F1B"
    pp_layers_per_stage: int | None = option(None, POSITIVE)
    pp_first_stage_less_layers: int | None = option(None, NOT_NEGATIVE, fix=BALANCED)
    pp_last_stage_less_layers: int | None = option(None, NOT_NEGATIVE, fix=BALANCED)
    pp_reduce_grad_per_microbatch: bool = False
    pp_record_step: int | None = option(None, POSITIVE)
    enable_compile: bool = True
    ac_mode: str = option("selective", one_of("none", "selective", "full", "memory_budget"))
    selective_ac_option: str = option("op", _every_or_op)
    ac_memory_budget: float = option(0.5, SHARE)
    ac_debug: bool = False
    offload_params: bool = False
    reshard_after_forward_policy: str = option("default", one_of("default", "always", "never"))
    use_deterministic_algorithms: bool = False
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
        """Options that do not go together."""
        yield from refusals(OptionContext(self))
