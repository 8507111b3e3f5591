"""The device that a request is planned for: a name or file, figures to replace, and devices per machine."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import parse_layout
from archon_plan.devices import Device, find_device, override
from archon_plan.request import RunRequest

DEVICE = "h100"
"""Default of ``--device``."""


def kind_of(device: Device) -> str:
    """The device as engines know it: ``cuda`` or ``cpu``."""
    return "cpu" if device.kind == "cpu" else "cuda"


def ranks_of(layout: str | None) -> int | None:
    """The number of devices of a layout; ``None`` if it cannot be parsed."""
    try:
        return None if layout is None else parse_layout(layout).world_size
    except LayoutError:
        return None  # the check of the layout reports it


def read_device(
    name: str, figures: Sequence[str] = (), *, nodes: int | None = None, world: int | None = None
) -> Device:
    """A device with figures replaced.

    Args:
        name: in the table, or a file.
        figures: settings such as ``efficiency.dense=0.6``.
        nodes: machines that share ``world`` devices; ``None`` for as many as the device's own number needs.
        world: number of devices; ``None`` if unknown.

    Raises:
        UnknownNameError, ConfigError: the device, a figure, or the number of machines is wrong.
    """
    device = override(find_device(name), figures)
    if nodes is None or world is None:
        return device
    if world % nodes:
        raise ConfigError(
            f"--nodes: found {nodes} for {world} devices; allowed are divisors of {world}, since machines have equally "
            "many devices; choose one"
        )
    return device.with_figures({"devices_per_node": world // nodes}, source="--nodes")


def device_of(
    request: RunRequest, name: str | None, figures: Sequence[str] = (), *, nodes: int | None = None
) -> Device:
    """The device of a run: by default ``h100``, or ``cpu`` for a cluster without GPUs; as many per machine as
    ``cluster.n_gpus_per_node`` says. Raises as ``read_device``."""
    is_cpu = bool(request.engines) and request.engines[0].device == "cpu"
    device = find_device(name or ("cpu" if is_cpu else DEVICE))
    if request.devices_per_node:
        per_node = {"devices_per_node": request.devices_per_node}
        device = device.with_figures(per_node, source="cluster.n_gpus_per_node")
    if nodes is not None:
        world = request.n_nodes * request.devices_per_node
        if not world or world % nodes:
            raise ConfigError(
                f"--nodes: found {nodes} for the file's {world} devices; allowed are divisors of that number; set "
                "cluster.n_nodes and cluster.n_gpus_per_node instead"
            )
        device = device.with_figures({"devices_per_node": world // nodes}, source="--nodes")
    return override(device, figures)
