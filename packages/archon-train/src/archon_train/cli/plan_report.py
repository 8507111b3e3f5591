"""Prints the plan of a run: layouts, decisions, and obstacles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from archon_core.cli.console import print_table, print_text
from archon_core.config.loading import LoadedConfig
from archon_core.contracts.decisions import Decision
from archon_core.contracts.launching import Part, ProcessPlan
from archon_train.run_plan import RunPlan, install_commands


def print_plan(plan: RunPlan, loaded: LoadedConfig) -> None:
    """Print the engines with their layouts and ranks."""
    cluster = loaded.config.cluster
    rows = []
    for share in plan.shares:
        ranks = f"on the ranks of {share.hosted_by}" if share.hosted_by else str(share.ranks)
        rows.append((share.role, str(share.layout), ranks))
    used, available = sum(share.ranks for share in plan.shares), cluster.n_nodes * cluster.n_gpus_per_node
    if rows:
        print_table(("engine", "layout", "ranks"), rows)
        if available:
            print_text(f"{used} of {available} ranks (cluster: {cluster.n_nodes} x {cluster.n_gpus_per_node})\n")
        else:
            print_text(f"{used} ranks on CPUs (cluster.n_gpus_per_node: 0)\n")
    if plan.processes.parts:
        parts = [
            (
                part.name,
                ", ".join(part.roles),
                _processes(part, plan.processes),
                "; ".join(_places(part, plan.processes)),
                part.wish,
            )
            for part in plan.processes
        ]
        print_table(("part", "engines", "processes", "where", "placed"), parts)
        print_text("")
        if plan.processes.services:
            services = [(one.name, "yes" if one.process else "no", one.where) for one in plan.processes.services]
            print_table(("service", "process", "where"), services)
            print_text("")
    for note in plan.notes:
        print_text(f"note: {note}")


def _processes(part: Part, plan: ProcessPlan) -> str:
    """The number of a part's processes, with their ranks if other ranks come before or after them."""
    number, first = len(part.processes), plan.first_rank(part)
    if first is None or sum(other.kind == "ranks" for other in plan) == 1:
        return str(number)
    return f"{number} ({'rank' if number == 1 else 'ranks'} {_ranges(range(first, first + number))})"


def _places(part: Part, plan: ProcessPlan) -> Iterator[str]:
    """The machines of a part, with its devices there."""
    for node, processes in groupby(part.processes, key=lambda process: process.node):
        devices = [device for process in processes for device in process.devices]
        if plan.devices_per_node:
            yield f"machine {node}: devices {_ranges(devices)}"
        else:
            yield f"machine {node}"


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, such as ``0-3, 6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def plan_data(plan: RunPlan, decisions: Sequence[Decision]) -> dict[str, Any]:
    """The plan as JSON data, for ``--dry-run --json``."""
    return {
        "can_run": plan.can_run,
        "engines": [
            {"role": share.role, "layout": str(share.layout), "ranks": share.ranks, "hosted_by": share.hosted_by}
            for share in plan.shares
        ],
        "n_nodes": plan.processes.n_nodes,
        "devices_per_node": plan.processes.devices_per_node,
        "parts": [
            {
                "name": part.name,
                "roles": list(part.roles),
                "layout": str(part.layout),
                "kind": part.kind,
                "together": part.together,
                "first_rank": plan.processes.first_rank(part),
                "processes": [asdict(process) for process in part.processes],
                "scheduling": asdict(part.scheduling),
            }
            for part in plan.processes
        ],
        "services": [asdict(service) for service in plan.processes.services],
        "decisions": [asdict(decision) for decision in decisions],
        "missing_packages": [
            {"name": need.package.name, "command": need.package.command, "for": list(need.purposes)}
            for need in plan.needs
        ],
        "obstacles": [asdict(obstacle) for obstacle in plan.obstacles],
        "notes": list(plan.notes),
    }


def print_decisions(decisions: Sequence[Decision]) -> None:
    """Print the table of decisions."""
    if decisions:
        rows = [(d.option, d.requested, d.effective, d.reason) for d in decisions]
        print_table(("option", "asked", "used", "because"), rows)
        print_text("")


def print_obstacles(plan: RunPlan) -> None:
    """Print all obstacles to standard output, for a dry run."""
    print_text("\n".join(describe_obstacles(plan)))


def describe_obstacles(plan: RunPlan) -> list[str]:
    """All obstacles of a run, as lines."""
    lines = []
    wrong = [obstacle.text for obstacle in plan.obstacles if obstacle.kind == "config"]
    unable = [obstacle.text for obstacle in plan.obstacles if obstacle.kind == "environment"]
    if wrong:
        lines += ["errors in the configuration:", *_items(wrong)]
    if plan.needs:
        lines.append("missing packages:")
        for need in plan.needs:
            lines += _items([f"{need.package.name}, which {need.package.matter}; for {'; '.join(need.purposes)}"])
        lines += [f"  {command}" for command in install_commands(plan.needs)]
    if unable:
        lines += ["cannot run on this machine:", *_items(unable)]
    return lines


def _items(texts: Sequence[str]) -> list[str]:
    return ["- " + text.replace("\n", "\n  ") for text in texts]
