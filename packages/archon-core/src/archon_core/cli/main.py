"""The program ``archon``: global options, dispatch to commands, and reporting of errors."""

from __future__ import annotations

import os
import sys
import traceback as tracebacks
from collections.abc import Sequence
from typing import Annotated

import typer

from archon_core import __version__
from archon_core.cli.commands import Commands
from archon_core.cli.console import print_error
from archon_core.cli.encoding import check_arguments, ensure_utf8
from archon_core.errors import USER_ERROR, ArchonError
from archon_core.plugins import registry
from archon_core.plugins.discovery import discover, distribution_name, normalise
from archon_core.plugins.hints import nearest

app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"archon-core {__version__}")
        raise typer.Exit


def _disable_plugins(names: list[str] | None) -> list[str]:
    """Add the names to ``ARCHON_DISABLE_PLUGINS``, which ranks inherit."""
    if not names:
        return []
    entry_points = discover().entry_points
    installed = {normalise(name) for point in entry_points for name in (point.name, distribution_name(point))}
    for name in names:
        if normalise(name) not in installed | {"all"}:
            close = nearest(name, installed)
            meant = f", did you mean {close!r}?" if close else ""
            known = ", ".join(point.name for point in entry_points) or "none"
            raise typer.BadParameter(f"no installed plugin is called {name!r}{meant}; allowed are all, {known}")
    before = os.environ.get("ARCHON_DISABLE_PLUGINS", "")
    os.environ["ARCHON_DISABLE_PLUGINS"] = ",".join([*([before] if before else []), *names])
    registry.cache_clear()
    return names


def _show_tracebacks(requested: bool) -> None:
    # Not in the group's callback: typer resolves the command first, which may fail.
    if requested:
        os.environ["ARCHON_TRACEBACK"] = "1"


@app.callback()
def archon(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    no_plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--no-plugin",
            metavar="NAME",
            # Before --help, which lists the commands of plugins.
            is_eager=True,
            callback=_disable_plugins,
            help="Leave out a plugin, by its name or its package's; may be repeated; 'all' leaves out all plugins.",
        ),
    ] = None,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            callback=_show_tracebacks,
            help="Show tracebacks of errors, like ARCHON_TRACEBACK=1.",
        ),
    ] = False,
) -> None:
    """Fine-tune language models and train them with reinforcement learning, on one process or many."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program. Exits with 0, with 2 and a message after a user error, or with the command's exit code.

    Args:
        arguments: without the program's name; ``None`` for those of the process.
    """
    if arguments is None:
        ensure_utf8()
    try:
        check_arguments(sys.argv[1:] if arguments is None else arguments)
        typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments),
            prog_name="archon",
        )
    except ArchonError as error:
        if os.environ.get("ARCHON_TRACEBACK", "0") not in ("", "0"):
            tracebacks.print_exception(error)
        print_error(error)
        sys.exit(USER_ERROR)
