"""Versions, machines and starts of runs, and the files that profilers wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from archon_core.page.charts import draw_table
from archon_report.options_table import draw_side_by_side
from archon_report.run import Run


def draw_environment(runs: Sequence[Run]) -> Iterator[str]:
    """Versions, machine, commit, and every start with its end, side by side."""
    columns = []
    for run in runs:
        column = {"run folder": str(run.folder)}
        if run.starts:
            column |= {"command": run.starts[-1].command, **run.starts[-1].environment}
        for number, start in enumerate(run.starts, start=1):
            began = f"from step {start.resumed_from}" if start.resumed_from is not None else "new"
            end = f"{start.ending} {start.ended}" if start.ending else ""
            if not end and (number < len(run.starts) or run.state.kind == "stopped"):
                end = "left no record of its end"
            error = f": {start.error}" if start.error else ""
            column[f"start {number}"] = f"{start.time}, {began}" + (f"; {end}{error}" if end else "")
        columns.append(column)
    yield draw_side_by_side("", [run.name for run in runs], columns)


def draw_files(run: Run) -> Iterator[str]:
    """Traces and memory snapshots, with the tools that open them."""
    if not run.files:
        return
    rows = [[name, _bytes(size), _how_to_open(name)] for name, size in run.files.items()]
    yield draw_table(("file", "size", "open it with"), rows, texts=True)


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _how_to_open(name: str) -> str:
    if name.endswith((".trace.json.gz", ".trace.json")):
        return "ui.perfetto.dev, or chrome://tracing"
    if name.endswith(".pickle"):
        return "docs.pytorch.org/memory_viz"
    return ""
