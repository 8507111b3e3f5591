"""A device as a plan sees it: memory, peaks, bandwidths, and the share of each that real work reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from archon_core.errors import ConfigError, did_you_mean

ASSUMED = "assumed; calibrate"
"""Source of a figure that nobody has measured for this device."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of a peak that real work reaches, 0 to 1.

    Attributes:
        dense: matrix products, of the peak of their dtype.
        grouped: products of experts, likewise.
        attention: core attention, likewise.
        memory: operations that only read and write, such as norms and optimizers, of the memory bandwidth.
        node: collectives inside a node, of the bandwidth of its links.
        network: collectives between nodes, of the bandwidth of the network.
    """

    dense: float
    grouped: float
    attention: float
    memory: float = 0.85
    node: float = 0.8
    network: float = 0.85


@dataclass(frozen=True)
class Device:
    """One accelerator, or one process on CPU cores, and its links.

    Attributes:
        name: as in the table.
        memory: bytes that a process can allocate, the CUDA context included.
        peak_bf16: dense bf16 products, in FLOP/s, without sparsity.
        peak_fp32: fp32 products, in FLOP/s, without TF32.
        memory_bandwidth: bytes/s.
        node_bandwidth: bytes/s that a device can send to others of its node.
        node_latency: seconds per step of a collective inside a node.
        network_bandwidth: bytes/s that a device can send to other nodes.
        network_latency: seconds per step of a collective between nodes.
        host_bandwidth: bytes/s between the device and host memory.
        devices_per_node: devices that share a node's links.
        efficiency: shares of these figures that work reaches.
        launch: seconds of host time per operation.
        disk_bandwidth: bytes/s that a machine writes to the shared file system, or reads from it.
        kind: ``gpu`` runs operations while the host launches the next ones; ``cpu`` computes between them.
        cores: processor cores of a node, which its ranks divide among their threads, or share if there are too few
            (``shared_cores``). All other figures are those of one thread that has a core to itself. 0 if the number is
            unknown, or on a GPU: each rank computes at these figures.
        context_bytes: memory of the CUDA context with its kernels.
        communicator_bytes: memory of one communicator.
        allocator_share: memory that the caching allocator holds beyond the peak of live tensors, as a share of it.
        sources: figure -> where it comes from, for printing.
    """

    name: str
    memory: float
    peak_bf16: float
    peak_fp32: float
    memory_bandwidth: float
    node_bandwidth: float
    node_latency: float
    network_bandwidth: float
    network_latency: float
    host_bandwidth: float
    devices_per_node: int
    efficiency: Efficiency
    launch: float = 5e-6
    disk_bandwidth: float = 2e9
    kind: Literal["gpu", "cpu"] = "gpu"
    cores: float = 0.0
    context_bytes: float = 0.6 * 2**30
    communicator_bytes: float = 0.25 * 2**30
    allocator_share: float = 0.05
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def peak(self, bytes_per_number: int) -> float:
        """Peak of products of numbers of that size, in FLOP/s; sizes above 2 bytes are taken for fp32."""
        return self.peak_bf16 if bytes_per_number <= 2 else self.peak_fp32

    def source(self, figure: str) -> str:
        """Where a figure comes from, such as ``efficiency.dense``."""
        return dict(self.sources).get(figure, ASSUMED)

    def rows(self) -> list[tuple[str, float | int | str, str]]:
        """Every figure as (name, value, source), in the order of the attributes."""
        return [(name, value, self.source(name)) for name, value in figures_of(self).items()]

    def with_figures(self, figures: Mapping[str, Any], *, source: str) -> Device:
        """A copy with some figures replaced.

        Args:
            figures: name -> value, names as in ``rows``.
            source: their source in the copy.

        Raises:
            ConfigError: a figure does not exist or has an impossible value, or a GPU has ``cores``.
        """
        known = figures_of(self)
        checked = {name: _checked(name, value, known, self.name) for name, value in figures.items()}
        inner = {name.partition(".")[2]: value for name, value in checked.items() if name.startswith("efficiency.")}
        outer = {name: value for name, value in checked.items() if "." not in name}
        sources = {**dict(self.sources), **dict.fromkeys(checked, source)}
        found = replace(self, efficiency=replace(self.efficiency, **inner), sources=tuple(sources.items()), **outer)
        if found.cores and found.kind != "cpu":
            raise ConfigError(
                f"device {self.name}: cores: found {found.cores:g} for a {found.kind}; allowed is 0, since only ranks "
                "on a CPU share cores; leave it out, or choose --device cpu"
            )
        return found


def figures_of(device: Device) -> dict[str, float | int | str]:
    """Every figure by its name, such as ``efficiency.dense``, in the order of the attributes."""
    found: dict[str, float | int | str] = {}
    for outer in fields(device):
        value = getattr(device, outer.name)
        if outer.name == "efficiency":
            found |= {f"efficiency.{inner.name}": getattr(value, inner.name) for inner in fields(value)}
        elif outer.name not in ("name", "sources"):
            found[outer.name] = value
    return found


_MAY_BE_ZERO = (
    "node_latency",
    "network_latency",
    "launch",
    "cores",
    "context_bytes",
    "communicator_bytes",
    "allocator_share",
)


def _checked(name: str, value: Any, known: Mapping[str, Any], device: str) -> float | int | str:
    if name not in known:
        raise ConfigError(
            f"device {device}: found figure {name!r}{did_you_mean(name, list(known))}; allowed are {', '.join(known)}"
        )
    if name == "kind":
        if value not in ("gpu", "cpu"):
            raise ConfigError(f"device {device}: kind: found {value!r}; allowed are gpu and cpu")
        return str(value)
    # YAML 1.1 reads 4e12 without a point as text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    allowed = _allowed(name)
    if not math.isfinite(number) or isinstance(value, bool) or not allowed[0](number):
        raise ConfigError(f"device {device}: {name}: found {value!r}; allowed is {allowed[1]}; correct it")
    return int(number) if name == "devices_per_node" else number


def _allowed(name: str) -> tuple[Any, str]:
    if name.startswith("efficiency."):
        return (lambda number: 0 < number <= 1), "a share above 0 and up to 1"
    if name == "devices_per_node":
        return (lambda number: number >= 1 and number == int(number)), "an integer from 1"
    if name in _MAY_BE_ZERO:
        return (lambda number: number >= 0), "a number from 0"
    return (lambda number: number > 0), "a number above 0"
