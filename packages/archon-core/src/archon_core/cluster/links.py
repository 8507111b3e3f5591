"""Links between ranks along the axes of a layout: which are measured, and which differ from the others. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from archon_core.cli.findings import Finding
from archon_core.cluster.naming import name_ranks
from archon_core.layout.dims import ParallelDims
from archon_core.layout.grid import RankGrid

SLOW_FACTOR = 3.0
"""A link this many times slower than the median of its kind is a note."""

BROKEN_FACTOR = 10.0
"""... and this many times, a failure: another network, or a cable at a tenth of its rate."""

LATENCY_FLOOR = 1e-3
"""Seconds of latency that are never a finding: on a busy machine, a process waits that long for its core."""

LEAST_LINKS = 3
"""Links of a kind from which on one can be called odd."""


@dataclass(frozen=True)
class Link:
    """A measured connection.

    Attributes:
        axis: of the layout, such as ``tp``.
        ranks: its two ends.
        latency: seconds of a small message one way.
        bandwidth: bytes per second one way.
    """

    axis: str
    ranks: tuple[int, int]
    latency: float
    bandwidth: float


def axes_of(dims: ParallelDims) -> list[tuple[str, RankGrid]]:
    """The axes with more than one rank, those of experts last, each with its grid."""
    dense, expert = dims.dense_grid, dims.expert_grid
    found = [(axis, dense) for axis, size in zip(dense.axes, dense.sizes, strict=True) if size > 1]
    if dims.ep * dims.etp > 1:
        sizes = dict(zip(expert.axes, expert.sizes, strict=True))
        found += [(axis, expert) for axis in ("edp", "ep", "etp") if sizes[axis] > 1]
    return found


def ring_rounds(groups: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """The links between neighbours on the ring of each group, in rounds in which every rank has at most one link.

    >>> ring_rounds([(0, 1, 2, 3), (4, 5, 6, 7)])
    [[(0, 1), (2, 3), (4, 5), (6, 7)], [(1, 2), (0, 3), (5, 6), (4, 7)]]
    >>> ring_rounds([(0, 1, 2)])
    [[(0, 1)], [(1, 2)], [(0, 2)]]
    """
    rounds: list[list[tuple[int, int]]] = [[], [], []]
    for group in groups:
        size = len(group)
        for index in range(size if size > 2 else size - 1):
            first, second = sorted((group[index], group[(index + 1) % size]))
            is_last_of_odd = size % 2 and index == size - 1
            rounds[2 if is_last_of_odd else index % 2].append((first, second))
    return [pairs for pairs in rounds if pairs]


def compare_links(links: Sequence[Link], hosts: Sequence[str]) -> Iterator[Finding]:
    """Findings for links that are much slower than others of their axis, or one line per axis.

    Links within a host and between hosts are compared apart. If all links of a rank on an axis are slow, the rank is
    named rather than its links.
    """
    for axis in dict.fromkeys(link.axis for link in links):
        odd: list[Finding] = []
        for is_inside in (True, False):
            kind = [one for one in links if one.axis == axis and (len({hosts[r] for r in one.ranks}) == 1) == is_inside]
            odd += _odd_links(axis, kind, hosts, "within a host" if is_inside else "between hosts")
        yield from odd or [Finding(f"axis {axis}", "ok", _summary([link for link in links if link.axis == axis]))]


def _odd_links(axis: str, links: Sequence[Link], hosts: Sequence[str], kind: str) -> Iterator[Finding]:
    if len(links) < LEAST_LINKS:
        return
    bandwidth = statistics.median(link.bandwidth for link in links)
    latency = statistics.median(link.latency for link in links)

    def slowness(link: Link) -> float:
        late = link.latency / latency if link.latency > LATENCY_FLOOR else 1.0
        return max(bandwidth / link.bandwidth, late)

    slow = [link for link in links if slowness(link) >= SLOW_FACTOR]
    for subject, ones in _by_culprit(slow, links, hosts):
        worst = max(ones, key=slowness)
        yield Finding(
            f"axis {axis}",
            "failure" if slowness(worst) >= BROKEN_FACTOR else "note",
            f"{subject}: {show_bandwidth(worst.bandwidth)}, {show_latency(worst.latency)}; the median of "
            f"{len(links)} links {kind} is {show_bandwidth(bandwidth)}, {show_latency(latency)}",
            "check its network interface (above), cable and switch port, and what else uses the machine",
        )


def _by_culprit(slow: Sequence[Link], links: Sequence[Link], hosts: Sequence[str]) -> Iterator[tuple[str, list[Link]]]:
    """The slow links, together for a rank that explains them: all its links are slow, and there are several."""
    left = list(slow)

    def touching(rank: int, among: Sequence[Link]) -> list[Link]:
        return [link for link in among if rank in link.ranks]

    ranks = sorted({rank for link in slow for rank in link.ranks}, key=lambda rank: -len(touching(rank, slow)))
    for rank in ranks:
        own = touching(rank, left)
        if len(own) > 1 and len(own) == len(touching(rank, links)):
            left = [link for link in left if link not in own]
            yield f"{name_ranks([rank], hosts)} is slow to all its neighbours", own
    for link in left:
        yield f"the link of {name_ranks(link.ranks, hosts)} is slow", [link]


def _summary(links: Sequence[Link]) -> str:
    least = min(links, key=lambda link: link.bandwidth)
    return (
        f"{len(links)} link{'s' if len(links) > 1 else ''}: {_range(links, 'bandwidth', show_bandwidth)}, "
        f"{_range(links, 'latency', show_latency)}"
        + (f"; slowest between ranks {least.ranks[0]} and {least.ranks[1]}" if len(links) > 1 else "")
    )


def _range(links: Sequence[Link], field: str, show: Callable[[float], str]) -> str:
    values = sorted(getattr(link, field) for link in links)
    return show(values[0]) if len(values) == 1 else f"{show(values[0])} to {show(values[-1])}"


def show_bandwidth(bytes_per_second: float) -> str:
    """A bandwidth for people.

    >>> show_bandwidth(2.5e9)
    '2.50 GB/s'
    """
    return f"{bytes_per_second / 1e9:.2f} GB/s" if bytes_per_second >= 1e8 else f"{bytes_per_second / 1e6:.1f} MB/s"


def show_latency(seconds: float) -> str:
    """A latency for people.

    >>> show_latency(0.000042)
    '42 us'
    """
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
