"""``archon doctor --cluster``: starts the ranks if nobody has, examines them, and reports on the first one."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from archon_core.cli.console import print_json, print_table, print_text
from archon_core.cli.findings import Finding, print_findings
from archon_core.cluster.clocks import ClockOffset, compare_clocks, measure_clocks
from archon_core.cluster.facts import RankFacts, compare_versions, own_facts
from archon_core.cluster.joining import has_device, joined
from archon_core.cluster.links import Link, compare_links, show_bandwidth, show_latency
from archon_core.cluster.local_ranks import run_local_ranks
from archon_core.cluster.measuring import measure_links
from archon_core.cluster.naming import name_ranks
from archon_core.cluster.shared_folder import VISIBLE_SECONDS, compare_folders, look_into
from archon_core.errors import ConfigError
from archon_core.layout import Layout, ParallelDims, parse_layout
from archon_core.plugins import Registry, build_registry
from archon_core.plugins.discovery import discover
from archon_core.ranks.environment import rank_environment
from archon_core.ranks.network_interface import GLOO
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.srun import srun_environment

DEFAULT_FOLDER = Path("runs")
"""The default of ``cluster.fileroot``."""

DEFAULT_TIMEOUT = 120.0

MOST_LINKS = 40
"""Links to print."""


@dataclass(frozen=True)
class ClusterReport:
    """The result, on the first rank.

    Attributes:
        layout: whose axes were measured.
        ranks: all ranks.
        clocks: of all ranks.
        links: along the axes.
        findings: of the comparison.
    """

    layout: str
    ranks: Sequence[RankFacts]
    clocks: Sequence[ClockOffset]
    links: Sequence[Link]
    findings: Sequence[Finding]

    @property
    def is_consistent(self) -> bool:
        """Whether no finding is a failure."""
        return not any(finding.state == "failure" for finding in self.findings)


def examine(layout: str | None, folder: Path, *, timeout: float, as_json: bool) -> int:
    """Start all ranks and return the exit code; or examine this process as one rank, which ends it with that code.

    Raises:
        ConfigError: an option is invalid or missing, or ranks did not arrive.
        LayoutError: ``layout`` is malformed.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise ConfigError(f"--timeout: found {timeout:g}; allowed are positive numbers of seconds")
    if importlib.util.find_spec("torch") is None:
        raise ConfigError('--cluster: found no torch, which ranks use to connect; pip install "torch>=2.11"')
    os.environ.update(srun_environment(os.environ))
    place = rank_environment()
    if place is None:
        chosen = _read_layout(layout)
        given = ["--layout", str(chosen), "--folder", str(folder), "--timeout", f"{timeout:g}"]
        given += ["--json"] if as_json else []
        return run_local_ranks(["doctor", "--cluster", *given], chosen.world_size)
    chosen = _read_layout(layout or f"archon:d{place.world_size}")
    if chosen.world_size != place.world_size:
        raise ConfigError(
            f"--layout: found {chosen}, of {chosen.world_size} ranks, and {place.world_size} started (WORLD_SIZE); "
            f"choose a layout of {place.world_size}, or start {chosen.world_size}"
        )
    # Strict mode would stop at the first broken plugin, which the comparison names.
    registry = build_registry(
        discover(), {name: value for name, value in os.environ.items() if name != "ARCHON_STRICT_PLUGINS"}
    )
    device = f"cuda:{place.local_rank}" if has_device(place) else "cpu"
    with joined(place, timeout=timeout) as ranks:
        report = examine_ranks(ranks, chosen, folder, registry=registry, device=device)
        if ranks.is_first:
            _print_report(report, as_json=as_json)
    # Without the interpreter's shutdown, which torch's threads abort now and then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if report.is_consistent else 1)


def examine_ranks(
    ranks: Ranks,
    layout: Layout,
    folder: Path,
    *,
    registry: Registry,
    device: str = "cpu",
    clock: Callable[[], float] = time.time,
    patience: float = VISIBLE_SECONDS,
) -> ClusterReport:
    """Examine all ranks; returns the report on every rank. Collective over torch's default group.

    Args:
        ranks: all ranks.
        layout: with as many ranks.
        folder: that they should share.
        registry: the plugins of this rank.
        device: where the tensors of this rank are.
        clock: of this rank.
        patience: seconds to wait for files of other ranks.
    """
    facts = ranks.gather(own_facts(ranks.rank, registry, device=device, interface=os.environ.get(GLOO, "")))
    hosts = [one.host for one in facts]
    offsets = ranks.broadcast(measure_clocks(ranks.rank, ranks.size, clock))
    views = look_into(folder, ranks, patience=patience)
    links = measure_links(_dims(layout), ranks, device)
    findings = [
        _list_ranks(layout, hosts),
        *compare_versions(facts),
        *compare_clocks(offsets, hosts),
        *compare_folders(views, hosts, ranks.broadcast(str(folder))),
        *compare_links(links, hosts),
    ]
    return ClusterReport(str(layout), facts, offsets, links, findings)


def _list_ranks(layout: Layout, hosts: Sequence[str]) -> Finding:
    n_hosts = len(set(hosts))
    where = name_ranks(range(len(hosts)), hosts)
    return Finding("ranks", "ok", f"{len(hosts)} of {layout} on {n_hosts} host{'s' if n_hosts > 1 else ''}: {where}")


def _read_layout(text: str | None) -> Layout:
    if text is None:
        raise ConfigError(
            "--cluster: found neither --layout nor a rank's environment; give the layout of the run, such as --layout "
            "archon:d2t2, or start the command on every machine with torchrun or srun"
        )
    layout = parse_layout(text, option="--layout")
    if layout.kind != "train":
        raise ConfigError(
            f"--layout: found {text}, whose engine generates; allowed is an engine that trains, such as archon:d2"
        )
    return layout


def _dims(layout: Layout) -> ParallelDims:
    return layout.parallel_dims(moe=layout.ep > 1 or layout.etp is not None, option="--layout")


def _print_report(report: ClusterReport, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    rows = [
        (
            str(one.rank),
            one.host,
            one.device,
            one.interface or "by host name",
            one.versions.get("Python", ""),
            one.versions.get("torch", ""),
            f"{1e3 * offset.seconds:+.3f} ms",
        )
        for one, offset in zip(report.ranks, report.clocks, strict=True)
    ]
    print_table(("rank", "host", "device", "interface", "Python", "torch", "clock"), rows)
    print_text("")
    if report.links:
        shown = sorted(report.links, key=lambda link: link.bandwidth)[:MOST_LINKS]
        print_table(
            ("axis", "ranks", "bandwidth", "latency"),
            [
                (one.axis, f"{one.ranks[0]} - {one.ranks[1]}", show_bandwidth(one.bandwidth), show_latency(one.latency))
                for one in report.links
                if one in shown
            ],
        )
        if len(report.links) > len(shown):
            print_text(f"the slowest {len(shown)} of {len(report.links)} links; --json has all")
        print_text("")
    print_findings(report.findings)
