"""How a planned run is shown: layouts, decisions, and what has to be mended first."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.cli.console import print_table, print_text
from archon_core.config.loading import LoadedConfig
from archon_core.contracts.decisions import Decision
from archon_train.run_plan import RunPlan, install_commands


def print_plan(plan: RunPlan, loaded: LoadedConfig) -> None:
    """The engines and what they take of the cluster."""
    cluster = loaded.config.cluster
    rows = []
    for share in plan.shares:
        ranks = f"on the ranks of {share.hosted_by}" if share.hosted_by else str(share.ranks)
        rows.append((share.role, str(share.layout), ranks))
    used, available = sum(share.ranks for share in plan.shares), cluster.n_nodes * cluster.n_gpus_per_node
    if rows:
        print_table(("engine", "layout", "ranks"), rows)
        print_text(f"{used} of {available} ranks (cluster: {cluster.n_nodes} x {cluster.n_gpus_per_node})\n")
    for note in plan.notes:
        print_text(f"note: {note}")


def print_decisions(decisions: Sequence[Decision]) -> None:
    """The decisions table."""
    if decisions:
        rows = [(d.option, d.requested, d.effective, d.reason) for d in decisions]
        print_table(("option", "asked", "used", "because"), rows)
        print_text("")


def print_obstacles(plan: RunPlan) -> None:
    """Everything that stops the run, on standard output: for a dry run, which was asked for it."""
    print_text("\n".join(describe_obstacles(plan)))


def describe_obstacles(plan: RunPlan) -> list[str]:
    """What stops a run, as lines."""
    lines = []
    wrong = [obstacle.text for obstacle in plan.obstacles if obstacle.kind == "config"]
    unable = [obstacle.text for obstacle in plan.obstacles if obstacle.kind == "environment"]
    if wrong:
        lines += ["the configuration has to change:", *_items(wrong)]
    if plan.needs:
        lines.append("packages to install before this runs:")
        for need in plan.needs:
            lines += _items([f"{need.package.name}, which {need.package.matter}; for {'; '.join(need.purposes)}"])
        lines += [f"  {command}" for command in install_commands(plan.needs)]
    if unable:
        lines += ["what cannot run here as it is:", *_items(unable)]
    return lines


def _items(texts: Sequence[str]) -> list[str]:
    return ["- " + text.replace("\n", "\n  ") for text in texts]
