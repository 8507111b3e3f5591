"""``archon servers``: show the inference servers of a run."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archon_core.cli.console import print_json, print_remark, print_table
from archon_core.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from archon_rollout.servers_view import ServerRow, ServersView

LEAST_INTERVAL = 0.1
COLUMNS = ("server", "kind", "pool", "doing", "version", "tokens/s", "running", "up", "incarnation")
PARTS = ("config.yaml", "servers")
"""A run folder has at least one of these."""

NO_SERVER = 1
"""Exit code without any server that answers."""


def servers(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's YAML file, as for archon train, or its run folder.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OVERRIDES]...", help="Overrides of the file: name.of.option=value."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="With --watch: seconds between two looks.")] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch, one object per line and look.")
    ] = False,
) -> None:
    """Show the inference servers of a run: state, version, tokens per second, last error.

    Asks the registry that the run's cluster.name_resolve names, every server, and the status that the run's trainer
    keeps in the run folder. Exit code 1 if no server answers.
    """
    if interval < LEAST_INTERVAL:
        raise ConfigError(f"--interval: found {interval:g}; allowed are numbers from {LEAST_INTERVAL:g}")
    from archon_rollout.registries.run_place import find_run
    from archon_rollout.servers_view import Observer

    place = find_run(run, overrides or ())
    if run.suffix not in (".yaml", ".yml") and not place.folder.is_dir():
        raise ConfigError(f"{run}: found no such file or folder; give the YAML file of a run, or a run folder")
    if run.is_dir() and not any((run / name).exists() for name in PARTS):
        raise ConfigError(
            f"{run}: found a folder without {' or '.join(PARTS)}; give the YAML file of a run, or a run folder"
        )
    observer = Observer(place)
    view = observer.look()
    _show(view, as_json=as_json, watch=watch)
    with contextlib.suppress(KeyboardInterrupt):
        while watch:
            time.sleep(interval)
            view = observer.look()
            _show(view, as_json=as_json, watch=watch)
    if not any(row.server != "silent" for row in view.servers):
        raise typer.Exit(NO_SERVER)


def _show(view: ServersView, *, as_json: bool, watch: bool) -> None:
    if as_json:
        if watch:
            print(json.dumps(view.as_data()), flush=True)
        else:
            print_json(view.as_data())
        return
    if watch:
        typer.clear()
    for line in describe(view):
        print(line)
    if view.servers:
        print()
        details = [_details(row) for row in view.servers]
        print_table(COLUMNS, [_cells(row) for row in view.servers], details=details)
    if view.registry_error:
        print_remark(view.registry_error, label="registry: ", style="bold red")


def describe(view: ServersView) -> list[str]:
    """Lines about the registry and the trainer."""
    from archon_rollout.servers_view import is_current

    if view.registry_error:
        listed = "cannot be read; listed below are the servers known to the trainer"
    elif not view.servers:
        listed = "lists no server; start one with: archon serve --model PATH --announce RUN"
    else:
        listed = f"{len(view.servers)} server{'s' if len(view.servers) > 1 else ''}"
    lines = [f"run {view.run}, registry {view.registry}: {listed}"]
    trainer = view.trainer
    if trainer is None:
        lines.append("trainer: no status in the run folder; it has not started, or its run folder is elsewhere")
    elif trainer.ended:
        lines.append(f"trainer: ended {_span(trainer.age)} ago, with version {trainer.version}")
    elif not is_current(trainer):
        lines.append(f"trainer: silent for {_span(trainer.age)}; the pool's states below are old")
    else:
        error = f"; it cannot read the registry: {trainer.registry_error}" if trainer.registry_error else ""
        lines.append(f"trainer: version {trainer.version}, topology {trainer.epoch}{error}")
    if view.sampling is not None:
        lines.append(view.sampling.describe())
    return lines


def _cells(row: ServerRow) -> list[str | Text]:
    from rich.text import Text

    colours = {"active": "green", "suspect": "yellow", "out": "red", "silent": "red"}
    up = _span(max(0.0, time.time() - row.started_at)) if row.started_at else "-"
    return [
        row.address,
        row.kind or "-",
        Text(row.pool or "-", colours.get(row.pool, "")),
        Text(row.server, colours.get(row.server, "")),
        "-" if row.version is None or row.version < 0 else str(row.version),
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}",
        "-" if row.running is None else str(row.running),
        up,
        row.incarnation[:8] or "-",
    ]


def _details(row: ServerRow) -> list[str]:
    """Lines below a server: why it is not in service, and when it may join again."""
    lines = [f"error: {row.error}"] if row.error else []
    attempts = f"{row.refusals} attempt{'s' if row.refusals > 1 else ''} to join failed"
    if row.retry_seconds is not None:
        again = f"may join again in {_span(row.retry_seconds)}" if row.retry_seconds else "may join again"
        lines.append(f"{attempts}; {again}" if row.refusals else again)
    elif row.refusals:
        lines.append(f"{attempts}; the next one is due")
    return lines


def _span(seconds: float) -> str:
    """A duration, such as ``42 s``, ``7 min`` or ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
