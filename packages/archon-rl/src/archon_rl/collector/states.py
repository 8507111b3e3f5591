"""Batches, groups and window states as data for msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_rl.collector.group import Group, group_data, read_group
from archon_rl.collector.window import ConsumedBatch, Settled, WindowState


def batch_data(batch: ConsumedBatch[Group]) -> dict[str, Any]:
    """A batch as data."""
    return {"step": batch.step, "settled": settled_data(batch.settled)}


def read_batch(data: Mapping[str, Any]) -> ConsumedBatch[Group]:
    """The batch that ``batch_data`` described."""
    return ConsumedBatch(data["step"], read_settled(data["settled"]))


def state_data(state: WindowState[Group]) -> dict[str, Any]:
    """A window's state as data."""
    return {
        "step": state.step,
        "first": state.first,
        "settled": settled_data(state.settled),
        "unfinished": list(state.unfinished),
    }


def read_state(data: Mapping[str, Any]) -> WindowState[Group]:
    """The state that ``state_data`` described."""
    return WindowState(data["step"], data["first"], read_settled(data["settled"]), tuple(data["unfinished"]))


def settled_data(settled: Mapping[int, Settled[Group]]) -> list[Any]:
    """Settled groups as data."""
    return [[number, group_data(one.group), one.reason] for number, one in settled.items()]


def read_settled(data: list[Any]) -> dict[int, Settled[Group]]:
    """The groups that ``settled_data`` described."""
    return {number: Settled(read_group(group), reason) for number, group, reason in data}
