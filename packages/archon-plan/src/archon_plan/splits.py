"""How many of a number of devices should train, and how many should sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from archon_core.errors import ConfigError, LayoutError
from archon_engine.options.archon import ArchonOptions
from archon_plan.devices import Device
from archon_plan.layouts import write_layout
from archon_plan.memory import whole_memory
from archon_plan.parts import forward_actions, schedule_actions
from archon_plan.rl import Pass, RLPlan, RLRun, plan_rl
from archon_plan.search import search
from archon_plan.search_space import Sought
from archon_plan.setting import Setting, Tokens
from archon_plan.shared_prompts import apart

Rebuild = Callable[[int], tuple[Pass, ...] | None]
"""The passes of a trainer with this number of devices; ``None`` if no layout of it works."""

ENOUGH = 3
"""Divisions with the layout of a run from which no others are searched for."""

MOST_SEARCHED = 4
"""Divisions for which layouts are searched for: each takes a fraction of a second."""


@dataclass(frozen=True)
class Split:
    """One division of the devices.

    Attributes:
        trainer: devices that train.
        servers: devices that sample.
        plan: of the run with them.
    """

    trainer: int
    servers: int
    plan: RLPlan

    @property
    def layout(self) -> str:
        """The layout of the trainer."""
        actor = self.plan.run.actor
        return write_layout(actor.dims, moe=actor.anatomy.has_experts)


def divide_devices(run: RLRun, device: Device, total: int) -> list[Split]:
    """The divisions of ``total`` devices, the fastest first; of equally fast ones, the one with fewer servers.

    Servers keep their size, and the trainer keeps all sizes of its layout but the data ranks. Where that leaves fewer
    than three divisions, layouts for a trainer on whole machines are searched for.

    Args:
        run: with the batch of a step, which all divisions share.
        device: of trainer and servers.
        total: number of devices.

    Raises:
        ConfigError: no division works.
    """
    assert not run.colocated, "where the trainer's ranks sample, there is nothing to divide"
    counts = list(range(1, (total - 1) // run.server.n_devices + 1))
    found = list(_splits(run, device, total, counts, lambda devices: scaled_passes(run.passes, devices)))
    if len(found) < ENOUGH:
        known = {split.trainer for split in found}
        others = [count for count in counts if total - count * run.server.n_devices not in known]
        whole = [count for count in others if (total - count * run.server.n_devices) % device.devices_per_node == 0]
        others = whole or others
        found += _splits(run, device, total, _spread(others), lambda devices: searched_passes(run, device, devices))
    if not found:
        raise ConfigError(
            f"devices: found {total} for trainer and servers; a server has {run.server.n_devices}, and no layout of "
            "the others holds the model; add devices, or make servers smaller"
        )
    return sorted(found, key=lambda split: (split.plan.step_seconds, split.servers))


def _splits(run: RLRun, device: Device, total: int, counts: list[int], rebuild: Rebuild) -> Iterator[Split]:
    for count in counts:
        trainer = total - count * run.server.n_devices
        passes = rebuild(trainer)
        if passes is not None and _fits(passes[0].setting, device):
            plan = plan_rl(replace(run, passes=passes, servers=count), device)
            yield Split(trainer, count * run.server.n_devices, plan)


def _spread(counts: list[int]) -> list[int]:
    """At most ``MOST_SEARCHED`` of these, evenly spread."""
    if len(counts) <= MOST_SEARCHED:
        return counts
    return [counts[place * (len(counts) - 1) // (MOST_SEARCHED - 1)] for place in range(MOST_SEARCHED)]


def _fits(setting: Setting, device: Device) -> bool:
    """Whether the update of the actor fits the device."""
    return all(memory.total <= device.memory for memory in whole_memory(setting, device))


def scaled_passes(passes: tuple[Pass, ...], devices: int) -> tuple[Pass, ...] | None:
    """The same passes over the same tokens on another number of devices; ``None`` if the layout cannot have it."""
    found = []
    for one in passes:
        setting = scaled_setting(one.setting, devices)
        if setting is None:
            return None
        found.append(replace(one, setting=setting))
    return tuple(found)


def scaled_setting(setting: Setting, devices: int) -> Setting | None:
    """The setting on another number of FSDP's data ranks; ``None`` if the other sizes do not divide ``devices``."""
    dims = setting.dims
    unit = dims.world_size // dims.dp_shard
    if devices % unit:
        return None
    try:
        scaled = replace(dims, dp_shard=devices // unit)
    except LayoutError:  # expert ranks do not fit
        return None
    found = replace(setting, dims=scaled, actions=())
    return _with_actions(replace(found, tokens=_scaled_tokens(setting, found)))


def searched_passes(run: RLRun, device: Device, devices: int) -> tuple[Pass, ...] | None:
    """The passes of ``run`` with the layout that updates the actor fastest, with its schedule, and its
    checkpointing or ``full``; ``None`` if none fits."""
    update = run.passes[0]
    tokens = update.setting.tokens
    sought = Sought(
        run.actor.anatomy,
        device,
        sequences=-(-run.samples.sequences // update.times),
        base=replace(update.setting, tokens=apart(tokens)),
        most_tokens=tokens.per_micro_batch,
        modes=tuple(dict.fromkeys((update.setting.checkpointing, "full"))),
        schedules=(update.setting.schedule.name if update.setting.schedule else ArchonOptions().pp_schedule,),
        granularity=run.granularity,
        divisor=run.divisor,
        strict=run.strict,
    )
    candidates = search(sought, devices, best=1).candidates
    if not candidates:
        return None
    best = candidates[0].setting
    best = replace(best, tokens=replace(best.tokens, sequence=tokens.sequence, shared=tokens.shared))
    return (replace(update, setting=best), *(_like(best, update.times, one) for one in run.passes[1:]))


def _like(best: Setting, times: int, one: Pass) -> Pass:
    """A pass with the layout of ``best``, whose ``times`` passes train on the tokens of a step."""
    number = -(-best.tokens.n_micro_batches * times // one.times)
    setting = replace(
        one.setting,
        dims=best.dims,
        tokens=replace(best.tokens, n_micro_batches=number),
        stages=best.stages,
        schedule=best.schedule,
        reshards=best.reshards,
        actions=(),
    )
    return replace(one, setting=_with_actions(setting))


def _with_actions(setting: Setting) -> Setting:
    """The setting with the lists of its schedule."""
    if setting.schedule is None:
        return setting
    pp, number = setting.dims.pp, setting.tokens.n_micro_batches
    if setting.trains:
        return replace(setting, actions=schedule_actions(setting.schedule, setting.stage_plan, pp, number))
    return replace(setting, actions=forward_actions(setting.stage_plan, pp, number))


def _scaled_tokens(setting: Setting, scaled: Setting) -> Tokens:
    """The tokens of a data rank of ``scaled``, whose ranks share those of all ranks of ``setting``: in micro-batches of
    the same size, or smaller ones where there would be fewer than the pipeline needs."""
    tokens, padding = setting.tokens, scaled.token_multiple
    of_rank = tokens.per_micro_batch * tokens.n_micro_batches * setting.dims.dp_shard / scaled.dims.dp_shard
    number = math.ceil(of_rank / tokens.per_micro_batch)
    if setting.schedule is not None:
        multiple = scaled.dims.pp if setting.schedule.multiple_of_ranks else 1
        number = math.ceil(max(number, len(setting.stage_plan)) / multiple) * multiple
    padded = math.ceil(of_rank / number / padding) * padding
    return replace(tokens, per_micro_batch=min(tokens.per_micro_batch, padded), n_micro_batches=number)
