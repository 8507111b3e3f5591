"""What a search asks for, from an engine's request; and the request of a layout that it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from archon_engine.options.pipelines import micro_batch_divisor
from archon_plan.answer import Refusal, Refused
from archon_plan.constraints import check_engine
from archon_plan.devices import Device
from archon_plan.engine_plan import plan_engine
from archon_plan.layout_space import ALL_AXES
from archon_plan.layouts import write_layout
from archon_plan.parts import EngineRequest
from archon_plan.request import RunRequest
from archon_plan.search import Candidate, SearchResult, least_devices, search
from archon_plan.search_space import MODES, Sought
from archon_plan.setting import Setting

FURTHER = 16
"""Most times as many devices to look at if nothing fits."""


@dataclass(frozen=True)
class SearchAnswer:
    """The best layouts of a number of devices.

    Attributes:
        request: the engine, with any layout.
        sought: what all layouts share.
        world: number of devices.
        result: the layouts, the fastest first.
        least: the least number of devices on which a layout fits; ``None`` if there is none up to 16 times ``world``.
    """

    request: EngineRequest
    sought: Sought
    world: int
    result: SearchResult
    least: int | None


def find_layouts(
    request: RunRequest, device: Device, registry: Registry, *, world: int, best: int = 5
) -> SearchAnswer | Refused:
    """Search for the layouts of a run's actor, or of the only engine; or what is wrong with the engine in any layout.

    Raises:
        ConfigError: there is no engine to plan.
    """
    if not request.engines:
        raise ConfigError("\n".join(request.problems) or f"{request.title}: found no engine to plan")
    # Candidates are planned on machines of this device, and so is the request of one that is found.
    engine = replace(request.engines[0], ranks_per_node=device.devices_per_node)
    backend = engine.layout.partition(":")[0] or "archon"
    # Micro-batches of all sizes are compared, so a prompt counts with each of its samples.
    apart = replace(engine.sequences, prompt=0, samples=1)
    alone = replace(engine, layout=f"{backend}:d1", sequences=apart)
    check = check_engine(alone, registry)
    if check.violations:
        return Refused(request, (Refusal(alone, check.violations, ()),))
    assert check.parts is not None, "an engine without violations has parts"
    spec = check.parts.model
    axes = "".join(
        letter
        for letter in ALL_AXES
        if letter in check.parts.engine.axes
        and (letter not in CAPABILITY_OF_AXIS or CAPABILITY_OF_AXIS[letter] in spec.capabilities)
    )
    sought = Sought(
        anatomy=check.parts.anatomy,
        device=device,
        sequences=sequences_of(engine, world),
        base=plan_engine(alone, check).setting,
        most_tokens=engine.config.mb_spec.max_tokens_per_mb,
        axes=axes,
        modes=_modes(engine),
        schedules=_schedules(engine),
        granularity=engine.config.mb_spec.granularity,
        divisor=engine.config.mb_spec.n_mbs_divisor,
        strict=engine.config.archon.strict,
    )
    result = search(sought, world, best=best)
    named = (
        replace(one, layout=write_layout(one.setting.dims, backend=backend, moe=sought.anatomy.has_experts))
        for one in result.candidates
    )
    result = replace(result, candidates=tuple(named))
    least = least_devices(sought, world if result.candidates else FURTHER * world)
    return SearchAnswer(engine, sought, world, result, least)


def sequences_of(engine: EngineRequest, world: int) -> int:
    """The sequences of a step on all ranks together: those of the request, else as many as fill ``mb_spec.n_mbs``
    micro-batches of ``mb_spec.max_tokens_per_mb`` tokens on each of ``world`` devices, in whole groups."""
    if engine.sequences.number is not None:
        return engine.sequences.number
    spec, length = engine.config.mb_spec, engine.sequences.length * engine.config.mb_spec.granularity
    return spec.granularity * max(1, world * spec.n_mbs * (spec.max_tokens_per_mb or length) // length)


def _modes(engine: EngineRequest) -> tuple[str, ...]:
    """The modes of activation checkpointing to try: the one that the user wrote, or all."""
    written = f"{engine.role}.archon.ac_mode" in engine.explicit
    return (engine.config.archon.ac_mode,) if written else MODES


def _schedules(engine: EngineRequest) -> tuple[str, ...] | None:
    written = f"{engine.role}.archon.pp_schedule" in engine.explicit
    return (engine.config.archon.pp_schedule,) if written else None


def options_of(request: EngineRequest, setting: Setting) -> dict[str, str]:
    """The options of an engine's section that give the setting of a candidate in its layout.

    Among them are values that the engine would use anyway, such as a schedule's divisor of micro-batches: with
    ``archon.strict`` they have to be written.
    """
    spec = _micro_batches(request, setting)
    options = {"archon.pp_schedule": setting.schedule.name} if setting.schedule is not None else {}
    if not _compiles(request, setting) and request.config.archon.enable_compile:
        options["archon.enable_compile"] = "false"
    if setting.trains:
        options["archon.ac_mode"] = setting.checkpointing
    if spec.n_mbs_divisor != request.config.mb_spec.n_mbs_divisor:
        options["mb_spec.n_mbs_divisor"] = str(spec.n_mbs_divisor)
    return {**options, "mb_spec.max_tokens_per_mb": str(spec.max_tokens_per_mb), "mb_spec.n_mbs": str(spec.n_mbs)}


def _compiles(request: EngineRequest, setting: Setting) -> bool:
    """The value of ``archon.enable_compile`` for a candidate: false where its schedule excludes compiling."""
    splits = setting.schedule is not None and setting.schedule.splits_backward
    return request.config.archon.enable_compile and not splits


def _micro_batches(request: EngineRequest, setting: Setting) -> MicroBatchSpec:
    """The split of the batch into the micro-batches of a candidate, with the divisor that its schedule needs."""
    spec, schedule = request.config.mb_spec, setting.schedule
    needed = 1 if schedule is None else micro_batch_divisor(schedule, setting.dims.pp)
    return replace(
        spec,
        max_tokens_per_mb=setting.tokens.per_micro_batch,
        n_mbs=setting.tokens.n_micro_batches,
        n_mbs_divisor=math.lcm(spec.n_mbs_divisor, needed),
    )


def request_candidate(answer: SearchAnswer, candidate: Candidate) -> EngineRequest:
    """The request of an engine in a candidate's layout, with its options."""
    request, setting = answer.request, candidate.setting
    archon = replace(request.config.archon, enable_compile=_compiles(request, setting))
    if setting.schedule is not None:
        archon = replace(archon, pp_schedule=setting.schedule.name)
    if setting.trains:
        archon = replace(archon, ac_mode=setting.checkpointing)
    config = replace(
        request.config,
        backend=candidate.layout,
        archon=archon,
        mb_spec=_micro_batches(request, setting),
        gradient_checkpointing=setting.trains,
    )
    sequences = replace(request.sequences, number=answer.sought.sequences)
    return replace(request, layout=candidate.layout, config=config, sequences=sequences)
