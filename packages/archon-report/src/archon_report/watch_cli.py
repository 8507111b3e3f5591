"""``archon watch``: runs in the terminal, while they train."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archon_core.errors import ArchonError, ConfigError
from archon_core.run_files.metrics import METRICS
from archon_report.run import Run, names_of, read_run, runs_inside
from archon_report.watch_rows import draw_fitting, draw_whole
from archon_report.watch_view import Watched, draw

if TYPE_CHECKING:
    from rich.console import Console

Wait = Callable[[float], None]


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; they need not exist yet.")],
    once: Annotated[bool, typer.Option("--once", help="Print the state once and exit, for scripts.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Read the files this often.")] = 2.0,
) -> None:
    """Follow runs in the terminal: steps, reward, loss, speed, staleness, time per phase, time left.

    Ends when every run has ended, and on Ctrl-C. A run that has not started yet is waited for.
    """
    if not every > 0:
        raise ConfigError(f"--every: found {every:g}; allowed are seconds above 0")
    for folder in runs:
        if folder.is_file():
            raise ConfigError(f"{folder}: found a file; allowed is the folder of a run, such as runs/demo/grpo")
    from rich.console import Console

    console = Console()
    if once:
        found = look(runs)
        for watched in found:
            console.print(draw([watched], console.width))
        missing = [one for one in found if one.run is None]
        raise typer.Exit(1 if missing else 0)
    try:
        follow(runs, console, every)
    except KeyboardInterrupt:  # the live view has put the cursor back
        raise typer.Exit(130) from None


def follow(runs: Sequence[Path], console: Console, every: float, wait: Wait = time.sleep) -> None:
    """Show the runs until all have ended.

    Args:
        runs: their folders.
        console: of rich.
        every: seconds between two looks.
        wait: sleeps for so many seconds.
    """
    from rich.live import Live

    found = look(runs)
    with Live(draw_fitting(found, console), console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(draw_fitting(found, console), refresh=True)
            if all(one.has_ended for one in found):
                live.update(draw_whole(found, console))  # what stays on the screen may scroll
                return
            wait(every)
            found = look(runs, found)


def look(folders: Sequence[Path], before: Sequence[Watched] = ()) -> list[Watched]:
    """Read all runs.

    Args:
        folders: of the runs.
        before: what the last look found; what has happened since becomes a note.
    """
    earlier = list(before) or [Watched(folder) for folder in folders]
    names = names_of([one.folder for one in earlier])
    return [one.after(_read(one.folder, name)) for one, name in zip(earlier, names, strict=True)]


def _read(folder: Path, name: str) -> Run | str:
    """The run, or why it cannot be read."""
    if not (folder / METRICS).is_file() and not (folder / "config.yaml").is_file():
        inside = runs_inside(folder)
        return "waiting for the run to start" + (f"; there are runs in this folder: {inside}" if inside else "")
    try:
        return read_run(folder, name, only_metrics=True)
    except ArchonError as error:
        return str(error)
