"""``archon models`` and ``archon schedules``: lists the installed specs of one kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer

from archon_core.cli.console import print_json, print_table, print_text, remark_on_plugins
from archon_core.plugins import ModelSpec, ScheduleSpec, Spec, registry
from archon_core.plugins.hints import explain_none

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
S = TypeVar("S", bound=Spec)


def models(as_json: AsJson = False) -> None:
    """List model architectures."""
    _list(
        ModelSpec,
        ("model", "model types", "capabilities", "needs"),
        lambda spec: (
            ", ".join((spec.name, *spec.aliases)),
            ", ".join(spec.model_types) or "any, by name",
            " ".join(sorted(spec.capabilities)),
            " ".join(spec.needs),
        ),
        as_json=as_json,
    )


def schedules(as_json: AsJson = False) -> None:
    """List pipeline schedules."""
    _list(
        ScheduleSpec,
        ("schedule", "aliases", "stages per rank", "placement", "splits backward"),
        lambda spec: (
            spec.name,
            ", ".join(spec.aliases),
            "2+" if spec.stages_per_rank is None else str(spec.stages_per_rank),
            spec.placement,
            "yes" if spec.splits_backward else "no",
        ),
        as_json=as_json,
    )


def _list(kind: type[S], columns: Sequence[str], cells: Callable[[S], Sequence[str]], *, as_json: bool) -> None:
    """Print the specs of a kind, each with the package that provides it."""
    installed = registry()
    specs = installed.all(kind)
    if as_json:
        print_json([spec.as_data() | {"package": installed.origin(spec)} for spec in specs])
        return
    if specs:
        print_table((*columns, "package"), [(*cells(spec), installed.origin(spec)) for spec in specs])
    else:
        print_text(explain_none(kind.kind, installed.plugins))
    remark_on_plugins(installed)
