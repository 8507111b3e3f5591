"""How many of a number of devices should train, and how many should sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from archon_core.errors import ConfigError, LayoutError
from archon_plan.devices import Device
from archon_plan.memory import whole_memory
from archon_plan.parts import forward_actions, schedule_actions
from archon_plan.rl import Pass, RLPlan, RLRun, plan_rl
from archon_plan.setting import Setting, Tokens

Rebuild = Callable[[int], tuple[Pass, ...] | None]
"""The passes of a trainer with this number of devices; ``None`` if no layout of it works."""


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


def find_splits(run: RLRun, device: Device, total: int, rebuild: Rebuild | None = None) -> list[Split]:
    """All divisions of ``total`` devices, the fastest first; of equally fast ones, the one with fewer servers.

    Servers keep their size, and the trainer keeps all sizes of its layout but the data ranks.

    Args:
        run: with the batch of a step, which all divisions share.
        device: of trainer and servers.
        total: number of devices.
        rebuild: gives the trainer's passes; by default they are those of ``run`` on more or fewer data ranks.

    Raises:
        ConfigError: no division works.
    """
    assert not run.colocated, "where the trainer's ranks sample, there is nothing to divide"
    rebuild = rebuild or (lambda devices: scaled_passes(run.passes, devices))
    found = list(_splits(run, device, total, rebuild))
    if not found:
        actor = run.actor.dims
        raise ConfigError(
            f"devices: found {total} for trainer and servers; a server has {run.server.n_devices}, and the trainer a "
            f"multiple of {actor.world_size // actor.dp_shard} that holds the model; add devices, or make servers or "
            "trainer smaller"
        )
    return sorted(found, key=lambda split: (split.plan.step_seconds, split.servers))


def _splits(run: RLRun, device: Device, total: int, rebuild: Rebuild) -> Iterator[Split]:
    size = run.server.n_devices
    for count in range(1, total // size + 1):
        trainer = total - count * size
        passes = rebuild(trainer) if trainer > 0 else None
        if passes is not None and _fits(passes[0].setting, device):
            yield Split(trainer, count * size, plan_rl(replace(run, passes=passes, servers=count), device))


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
    tokens = _scaled_tokens(setting, scaled.dp_shard)
    if not setting.actions:
        return replace(setting, dims=scaled, tokens=tokens)
    number = tokens.n_micro_batches
    if setting.trains:
        assert setting.schedule is not None, "lists of actions belong to a schedule"
        actions = schedule_actions(setting.schedule, setting.stage_plan, dims.pp, number)
    else:
        actions = forward_actions(setting.stage_plan, dims.pp, number)
    return replace(setting, dims=scaled, tokens=tokens, actions=actions)


def _scaled_tokens(setting: Setting, data_ranks: int) -> Tokens:
    """The tokens of a data rank when ``data_ranks`` share those of all ranks: in micro-batches of the same size, or
    smaller ones where there would be fewer than the pipeline needs."""
    tokens, dims = setting.tokens, setting.dims
    of_rank = tokens.per_micro_batch * tokens.n_micro_batches * dims.dp_shard / data_ranks
    number = math.ceil(of_rank / tokens.per_micro_batch)
    if setting.schedule is not None:
        multiple = dims.pp if setting.schedule.multiple_of_ranks else 1
        number = math.ceil(max(number, len(setting.stage_plan)) / multiple) * multiple
    return replace(
        tokens, per_micro_batch=min(tokens.per_micro_batch, math.ceil(of_rank / number)), n_micro_batches=number
    )
