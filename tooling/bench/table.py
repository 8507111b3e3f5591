"""The results of benchmarks for people: a table, then in full what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from records import Measurement, Result, shown
from rich.console import Console
from rich.table import Table

COLOURS = {"pass": "green", "fail": "red", "error": "red", "timeout": "red", "skipped": "yellow"}


def print_table(results: Sequence[Result], console: Console) -> None:
    """Print one row per measurement, grouped by benchmark."""
    table = Table("benchmark", "measurement", "Archon", "other", "ratio", "bar", title=_machine(results))
    for result in results:
        name = f"[{COLOURS[result.status]}]{result.bench}[/] ({result.seconds:.0f} s)"
        for one in result.measurements:
            table.add_row(name, one.name, shown(one.archon), shown(one.other), _ratio(one), _bar(one))
            name = ""
        if not result.measurements:
            table.add_row(name, f"{result.status}: {result.message.partition(chr(10))[0]}")
        table.add_section()
    console.print(table)
    for result in results:
        if result.status in ("fail", "error", "timeout"):
            console.print(f"{result.status}: {result.bench}\n{result.message}\n", markup=False, highlight=False)


def _ratio(one: Measurement) -> str:
    return f"{one.ratio:.3g}" if one.passed else f"[red]{one.ratio:.3g}[/]"


def _bar(one: Measurement) -> str:
    if one.bar is None:
        return ""
    return f"{'at least' if one.better == 'higher' else 'at most'} {one.bar:g}"


def _machine(results: Sequence[Result]) -> str:
    machine = results[0].machine if results else {}
    return ", ".join(
        f"{name} {value}" for name, value in machine.items() if name in ("cpu", "cores", "python", "torch")
    )
