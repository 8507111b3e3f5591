"""``archon pipeline``: draws schedules, as planned or as a run had them. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from archon_core.cli.console import print_table, print_text
from archon_core.errors import ConfigError
from archon_pipeline.planned_view import plan_view
from archon_pipeline.recorded_views import recorded_views
from archon_pipeline.round_numbers import short
from archon_pipeline.svg import render_svg
from archon_pipeline.terminal import draw
from archon_pipeline.view import View

pipeline = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Draw pipeline schedules: bubble, peak activations and sends, as planned or as run.",
)


@pipeline.callback()
def group() -> None:
    """Draw pipeline schedules: bubble, peak activations and sends, as planned or as run."""


# A paragraph is a line: rich would keep the breaks inside of a docstring.
_HELP = "\n\n".join(
    (
        "Show when each rank does what: the schedule as planned, or a step as a run recorded it.",
        "[bold]archon pipeline show ZBV --pp 4 --microbatches 8[/bold] replays a schedule. Every stage takes one unit "
        "for a forward pass and for each half of a backward pass, and messages take none, unless --costs and --message "
        "say otherwise.",
        "[bold]archon pipeline show --run DIR[/bold] shows a recorded step and, above it, the same actions replayed "
        "with the mean times that were measured.",
        "The bubble is the time in which ranks wait over the time in which they work. Activations live from F to W, or "
        "to B where the backward pass is whole; the peak is in units of all layers of a rank and one micro-batch.",
    )
)


@pipeline.command(help=_HELP)
def show(
    schedule: Annotated[
        str | None,
        typer.Argument(
            metavar="SCHEDULE", help="Name or alias, as in actor.archon.pp_schedule: 1F1B, I1F1B, IZB, ZBV."
        ),
    ] = None,
    pp: Annotated[int | None, typer.Option("--pp", metavar="P", help="Pipeline ranks.")] = None,
    microbatches: Annotated[
        int | None, typer.Option("--microbatches", metavar="M", help="Micro-batches of a step.")
    ] = None,
    stages_per_rank: Annotated[
        int | None,
        typer.Option(
            "--stages-per-rank", metavar="V", help="Stages on each rank, where the schedule leaves it open [2]."
        ),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            metavar="F,B,W",
            help="Times of a stage: forward, gradient of the input alone, gradients of the weights alone. "
            "A whole backward pass takes B + W [1,1,1].",
        ),
    ] = None,
    message: Annotated[
        float | None, typer.Option(metavar="TIME", help="Time of a message between ranks, in the unit of --costs [0].")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the picture there as well.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Show a recorded step of this run folder, planned and measured."),
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Whose recording of --run, when several engines have one.")
    ] = None,
) -> None:
    """Show when each rank does what."""
    if run is not None:
        planning = {
            "SCHEDULE": schedule,
            "--pp": pp,
            "--microbatches": microbatches,
            "--stages-per-rank": stages_per_rank,
            "--costs": costs,
            "--message": message,
        }
        title, views = recorded_views(run, role, [name for name, value in planning.items() if value is not None])
    else:
        if role is not None:
            raise ConfigError(
                "--role: found it without --run; allowed is the role of a recording; add --run with the folder of a "
                "run, or leave it out"
            )
        times = "1,1,1" if costs is None else costs
        title, view = plan_view(schedule, pp, microbatches, stages_per_rank, times, message or 0.0)
        views = [view]
    if svg is not None:
        _write(svg, render_svg(views, title))
    _print(title, views)
    if svg is not None:
        print_text(f"\nwrote {svg}")


def _print(title: str, views: list[View]) -> None:
    console = Console()
    print_text(title)
    for view in views:
        console.print(view.describe(), highlight=False)
    print_text("")
    for line in draw(views, console.width):
        console.print(line, soft_wrap=True)
    for view in views:
        print_text(f"\n{view.name}" if view.name else "")
        unit = f" ({view.unit})" if view.unit else ""
        print_table(
            ("rank", "stages", f"waits{unit}", "peak activations", "x its layers", "sends"),
            (
                (
                    str(rank),
                    ", ".join(map(str, row.stages)),
                    short(row.waits),
                    str(row.peak),
                    short(row.share),
                    str(row.sends),
                )
                for rank, row in enumerate(view.summarise_ranks())
            ),
        )


def _write(path: Path, text: str) -> None:
    """Raises ConfigError when the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--svg: found {str(path)!r}, which cannot be written ({error.strerror}); allowed is a file in a folder "
            "that is there and that you may write to; choose another one"
        ) from error
