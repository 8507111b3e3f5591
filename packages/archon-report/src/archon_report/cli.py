"""``archon report``: a page about runs, and the steps of each as a table."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from archon_core.cli.console import print_json, print_remark, print_table, print_text
from archon_core.errors import ConfigError
from archon_core.run_files.metrics import METRICS
from archon_report.run import Run, read_runs
from archon_report.table import table_of, totals_of

PAGE = "report.html"
"""The page of a single run, in its folder."""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, such as runs/demo/grpo.")],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the page to this file. Default: report.html in the run folder; of several runs, here.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[int, typer.Option(help="The last steps to print; 0 for all. The page has every step.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows of one run as JSON, with all their metrics; no page.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Show runs: one HTML page with everything, and a table of their steps.

    The page has curves with all runs overlaid, time per phase, expert load, pipeline timelines, sampled completions,
    decisions, options and environment. It loads nothing, so it can be copied and mailed. Runs may still be going on.
    """
    if last < 0:
        raise ConfigError(f"--last: found {last}; allowed are numbers from 0, which stands for all steps")
    if as_json and (len(runs) > 1 or html is not None or show):
        raise ConfigError("--json: found with several runs, --html or --open; allowed is one run; leave the rest out")
    found = read_runs(runs)
    if as_json:
        _refuse_unreadable(found[0])
        print_json(_shown(found[0], last))
        return
    for run in found:
        _print_steps(run, last, named=len(found) > 1)
    _write(html or (Path(PAGE) if len(found) > 1 else runs[0] / PAGE), found, show)


def _refuse_unreadable(run: Run) -> None:
    problems = [problem for problem in run.problems if problem.startswith(METRICS)]
    if problems:
        raise ConfigError(f"{run.folder}/{problems[0]}")


def _shown(run: Run, last: int) -> list[dict[str, float]]:
    rows = [dict(row) for row in run.rows if "time/step" in row]
    return rows[-last:] if last else rows


def _print_steps(run: Run, last: int, *, named: bool) -> None:
    if named:
        print_text(f"{run.name}: {run.state.text}")
    for problem in run.problems:
        print_remark(problem, label="cannot read ")
    shown = _shown(run, last)
    if shown:
        _print_table(shown)
        totals = totals_of(shown)
        for line in ["", *totals] if totals else []:
            print_text(line)
    else:
        print_text(f"{run.folder / METRICS}: no step is finished yet")
    if named:
        print_text("")


def _print_table(rows: Sequence[Mapping[str, float]]) -> None:
    """Print the columns that fit the terminal; into a file or a pipe, all, with a line per step."""
    console = Console()
    table = table_of(rows, console.width if console.is_terminal else None)
    print_table(table.headings, table.rows, wraps=console.is_terminal)
    if table.left_out:
        print_remark(f"{', '.join(table.left_out)}: the terminal is too narrow; the page has them", label="left out ")


def _write(file: Path, runs: Sequence[Run], show: bool) -> None:
    """Write the page. Raises ConfigError: the file cannot be written."""
    from archon_report.page import render_page

    try:
        file.write_text(render_page(runs), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--html: found {str(file)!r}, which cannot be written ({error.strerror}); allowed is a file in an "
            "existing, writable folder; choose another path"
        ) from error
    print_remark(str(file), label="wrote ", style="bold")
    if show:
        webbrowser.open(file.resolve().as_uri())
