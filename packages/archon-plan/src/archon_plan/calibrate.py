"""Measures a device: products, attention, memory bandwidth, the time to launch an operation, and its links.

The only module of this package that needs torch, which it imports in functions. Started on several ranks (with a
process group), all of them measure at the same time, as they would compute, and agree on the median. On a CPU they
measure with one thread each. If they share cores, each counts its share of the time. So the figures are always those of
one thread that has a core to itself; plans give a rank as many threads as its launcher (``shared_cores``).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.errors import ConfigError
from archon_plan.calibration_sizes import SMALL, Sizes
from archon_plan.device_table import DEVICES
from archon_plan.devices import Device, find_device

if TYPE_CHECKING:
    import torch

_ROUNDS = 5
_LARGE = 2**26
"""Bytes of the buffers of bandwidth measurements."""


def calibrate(
    sizes: Sizes | None = None, *, device_type: str | None = None, name: str = "here", seconds: float = 0.2
) -> Device:
    """Measure this machine. With a default process group it is collective, and the links are measured, too.

    A GPU of the table keeps its vendor's peaks, and efficiencies are shares of these. For any other device the fastest
    product measured is the peak.

    Args:
        sizes: of the work; ``None`` for those of a model of eight billion parameters, on a CPU a small part of it.
        device_type: ``cuda`` or ``cpu``; ``None`` takes a GPU if there is one.
        name: of the device that is returned.
        seconds: how long to measure each figure, about.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    kind = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"calibration: found device {kind!r}, which this machine does not have; allowed are "
            f"{'cuda and cpu' if torch.cuda.is_available() else 'cpu only'}; leave it out to measure what there is"
        )
    probe = _Probe(torch.device(kind), sizes or (Sizes() if kind == "cuda" else SMALL), seconds)
    with _one_thread() if kind == "cpu" else nullcontext():
        return probe.device(name)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Probe:
    def __init__(self, device: torch.device, sizes: Sizes, seconds: float) -> None:
        import torch

        self._torch, self._device, self._sizes, self._most = torch, device, sizes, seconds
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)

    def device(self, name: str) -> Device:
        known = self._known()
        base = known or find_device("cpu" if self._device.type == "cpu" else "h100")
        rates = {"dense": self._dense(), "attention": self._attention(), "grouped": self._grouped()}
        peak = known.peak_bf16 if known is not None else max(rates["dense"], self._square(), *rates.values())
        figures: dict[str, Any] = {
            **{f"efficiency.{kind}": min(1.0, rate / peak) for kind, rate in rates.items() if rate},
            "peak_bf16": peak,
            "peak_fp32": known.peak_fp32 if known is not None else peak,
            "memory_bandwidth": self._copy_bandwidth(),
            "efficiency.memory": 1.0,
            "launch": self._launch(),
            "memory": self._memory(),
            "kind": "gpu" if self._device.type == "cuda" else "cpu",
            "devices_per_node": self._per_node(),
            "cores": 0.0 if self._device.type == "cuda" else float(usable_cores()),
            "context_bytes": self._context_bytes(),
        }
        if self._device.type == "cuda":
            figures["host_bandwidth"] = self._host_bandwidth()
        figures |= self._links()
        measured = base.with_figures(self._agreed(figures), source="measured")
        return Device(**{**_attributes(measured), "name": name})

    def _known(self) -> Device | None:
        """The device of the table with this GPU's name and memory."""
        if self._device.type != "cuda":
            return None
        reported = self._torch.cuda.get_device_name().lower()
        fitting = [each for each in DEVICES if each.name.partition("-")[0] in reported]
        return min(fitting, key=lambda each: abs(each.memory - self._memory()), default=None)

    def _seconds(self, work: Callable[[], Any]) -> float:
        """Median seconds of a call, over rounds of several calls."""
        synchronize = self._torch.cuda.synchronize if self._device.type == "cuda" else _nothing
        work()
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        calls = max(1, int(self._most / _ROUNDS / max(time.perf_counter() - started, 1e-7)))
        if self._collective:
            # Ranks must call collectives equally often.
            calls = int(self._same(calls))
        rounds = []
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            for _ in range(calls):
                work()
            synchronize()
            rounds.append((time.perf_counter() - started) / calls)
        return statistics.median(rounds) * self._share

    @cached_property
    def _share(self) -> float:
        """The share of the time in which this rank has a core while all ranks of its machine measure."""
        shares = self._device.type == "cpu" and self._collective
        return min(1.0, usable_cores() / self._per_node()) if shares else 1.0

    def _random(self, *shape: int, grad: bool = False) -> torch.Tensor:
        return self._torch.randn(*shape, device=self._device, dtype=self._dtype, requires_grad=grad)

    def _dense(self) -> float:
        """FLOP/s of forward and backward products of all matrices of a block."""
        flops = seconds = 0.0
        for rows, columns in self._sizes.matrices:
            x, weight = self._random(self._sizes.tokens, columns), self._random(rows, columns)
            grad = self._random(self._sizes.tokens, rows)
            seconds += self._seconds(lambda x=x, w=weight, g=grad: (x @ w.T, g @ w, g.T @ x))
            flops += 6 * self._sizes.tokens * rows * columns
        return flops / seconds

    def _square(self) -> float:
        """FLOP/s of a large square product."""
        size = 8192 if self._device.type == "cuda" else 512
        a = self._random(size, size)
        return 2 * size**3 / self._seconds(lambda: a @ a)

    def _grouped(self) -> float:
        """FLOP/s of the three products of each expert, as archon-moe computes them: grouped on a GPU, one expert after
        the other on a CPU."""
        if self._sizes.experts is None:
            return 0.0
        number, inner, hidden = self._sizes.experts
        rows = max(1, self._sizes.tokens // number)
        x, h = self._random(number * rows, hidden), self._random(number * rows, inner)
        up, down = self._random(number, inner, hidden), self._random(number, hidden, inner)
        if self._device.type == "cuda":
            ends = self._torch.arange(rows, (number + 1) * rows, rows, device=self._device, dtype=self._torch.int32)
            product = self._torch.nn.functional.grouped_mm

            def work() -> None:
                product(x, up.mT, offs=ends)
                product(x, up.mT, offs=ends)
                product(h, down.mT, offs=ends)
        else:

            def work() -> None:
                for expert in range(number):
                    own = slice(expert * rows, (expert + 1) * rows)
                    (x[own] @ up[expert].T, x[own] @ up[expert].T, h[own] @ down[expert].T)

        return 2 * number * rows * 3 * inner * hidden / self._seconds(work)

    def _attention(self) -> float:
        """FLOP/s of causal attention, forward and backward, in the pairs of a query and a key that it computes."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        heads, key_heads, size = self._sizes.heads
        length = self._sizes.sequence
        number = max(1, self._sizes.tokens // length)
        q = self._random(number, heads, length, size, grad=True)
        k, v = (self._random(number, key_heads, length, size, grad=True) for _ in range(2))
        grad = self._random(number, heads, length, size)
        attend = self._torch.nn.functional.scaled_dot_product_attention

        def work() -> None:
            out = attend(q, k, v, is_causal=True, enable_gqa=heads != key_heads)
            self._torch.autograd.grad(out, (q, k, v), grad)

        pairs = number * heads * length * (length + 1) / 2
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            # Two products forward, five backward.
            return 7 * 2 * pairs * size / self._seconds(work)

    def _copy_bandwidth(self) -> float:
        """Bytes/s of operations that read and write more than caches hold."""
        x, y = (self._random(_LARGE // self._random(1).element_size()) for _ in range(2))
        return 3 * x.numel() * x.element_size() / self._seconds(lambda: self._torch.add(x, y, out=y))

    def _launch(self) -> float:
        """Seconds of an operation without work."""
        x = self._random(1)

        def work() -> None:
            for _ in range(100):
                x.add(1.0)

        return self._seconds(work) / 100

    def _memory(self) -> float:
        if self._device.type == "cuda":
            return float(self._torch.cuda.mem_get_info()[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self._per_node()

    def _context_bytes(self) -> float:
        if self._device.type == "cuda":
            free, total = self._torch.cuda.mem_get_info()
            return float(max(total - free - self._torch.cuda.memory_reserved(), 0))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))

    def _host_bandwidth(self) -> float:
        host = self._torch.empty(_LARGE, dtype=self._torch.uint8, pin_memory=True)
        there = host.to(self._device)
        return _LARGE / self._seconds(lambda: there.copy_(host, non_blocking=True))

    @property
    def _collective(self) -> bool:
        """Whether several ranks measure. An engine of one process has a group, too, of itself."""
        dist = self._torch.distributed
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def _per_node(self) -> int:
        if self._collective:
            return int(os.environ.get("LOCAL_WORLD_SIZE", self._torch.distributed.get_world_size()))
        return max(1, self._torch.cuda.device_count()) if self._device.type == "cuda" else usable_cores()

    def _links(self) -> dict[str, float]:
        """Latency and bandwidth of the default group's links: those of the network if it spans nodes.

        A step computes between its collectives. Then ranks no longer arrive together, on a CPU the threads that send
        have to be woken, and caches hold something else, so a collective takes longer than in a loop of nothing else.
        Each one is measured behind a product, whose own time is subtracted.
        """
        if not self._collective:
            return {}
        dist, size = self._torch.distributed, self._torch.distributed.get_world_size()
        where = "node" if size <= self._per_node() else "network"
        number = _LARGE if self._device.type == "cuda" else 2**22

        # The functions that layers call: their latency on the host counts in every layer.
        from archon_engine.compat import all_gather, reduce_scatter_with_grad

        rows, columns = self._sizes.matrices[0]
        x, weight = self._random(self._sizes.tokens, columns), self._random(rows, columns)
        alone = self._seconds(lambda: x @ weight.T)

        def seconds(elements: int) -> float:
            part, whole = self._random(elements), self._random(elements * size)
            group = dist.group.WORLD

            def work() -> None:
                x @ weight.T
                all_gather(part, 0, group)
                x @ weight.T
                reduce_scatter_with_grad(whole, 0, group)

            return max(self._seconds(work) / 2 - alone, 1e-9)

        elements = number // self._random(1).element_size() // size
        small, large = seconds(1), seconds(elements)
        sent = elements * self._random(1).element_size() * (size - 1)
        return {
            f"{where}_latency": small / (size - 1),
            f"{where}_bandwidth": sent / max(large - small, 1e-9),
            f"efficiency.{where}": 1.0,
        }

    def _same(self, number: float) -> float:
        """The least of the ranks' numbers."""
        value = self._torch.tensor(float(number), device=self._device)
        self._torch.distributed.all_reduce(value, self._torch.distributed.ReduceOp.MIN)
        return value.item()

    def _agreed(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The median of all ranks' figures."""
        if not self._collective:
            return dict(figures)
        everywhere: list[Any] = [None] * self._torch.distributed.get_world_size()
        self._torch.distributed.all_gather_object(everywhere, dict(figures))
        return {
            name: value if isinstance(value, (str, int)) else statistics.median(each[name] for each in everywhere)
            for name, value in figures.items()
        }


def _nothing() -> None:
    """Operations on a CPU have ended when they return."""


def _attributes(device: Device) -> dict[str, Any]:
    return {name: getattr(device, name) for name in device.__dataclass_fields__}
