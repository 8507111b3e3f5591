"""Tables of docs/performance.md, from the committed results of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.records import Measurement, Result, read_results, shown
from generated.tables import table

BASELINE = "tooling/bench/baseline.json"

MEASURED = (
    "head",
    "train_step",
    "tree",
    "grpo",
    "generate",
    "served",
    "checkpoint",
    "publish",
    "plan",
    "asynchronous",
    "verify",
    "pipeline",
    "distributed",
    "moe",
    "startup",
)
"""Benchmarks with a block on the page."""


def render_performance(root: Path) -> dict[str, str]:
    """Name of a block -> its content, for every benchmark."""
    results = {result.bench: result for result in read_results(root / BASELINE)}
    return {f"{BASELINE} ({bench})": render_result(bench, results.get(bench)) for bench in MEASURED}


def render_result(bench: str, result: Result | None) -> str:
    """The table of a benchmark, the machine, and how its ratios have to be read."""
    if result is None or not result.measurements:
        return f"\nNot measured yet in this version; `hatch run bench --only {bench}` does.\n\n"
    rows = [
        (one.name, shown(one.archon), f"{shown(one.other)} ({one.against})", _ratio(one), _bar(one))
        for one in result.measurements
    ]
    text = f"\n{table(('measurement', 'Archon', 'other', 'ratio', 'bar'), rows)}\n"
    if details := list(_details(result.measurements)):
        text += "".join(f"{line}\n" for line in details) + "\n"
    return f"{text}*{machine_of(result.machine)}.*\n\n"


def machine_of(machine: Mapping[str, object]) -> str:
    """A machine in words."""
    cores = {1: "One core", 2: "Two cores", 4: "Four cores"}.get(machine["cores"], f"{machine['cores']} cores")
    versions = [f"{name} {machine[name]}" for name in ("torch", "transformers", "trl", "python") if name in machine]
    return f"{cores} of {machine['cpu']}; {', '.join(versions).replace('python', 'Python')}"


def _details(measurements: Sequence[Measurement]) -> Iterator[str]:
    for one in measurements:
        if one.details:
            values = ", ".join(f"{name} {_detail(value)}" for name, value in one.details.items())
            yield f"- {one.name}: {values}"


def _detail(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ratio(one: Measurement) -> str:
    return f"{one.ratio:.2f}" if one.passed else f"**{one.ratio:.2f}**, misses its bar"


def _bar(one: Measurement) -> str:
    if one.bar is None:
        return ""
    return f"at {'least' if one.better == 'higher' else 'most'} {one.bar:g}"
