"""``archon schedules``: the pipeline schedules that installed plugins provide."""

from __future__ import annotations

from typing import Annotated

import typer

from archon_core.cli.console import print_json, print_table, print_text, remark_on_plugins
from archon_core.plugins import ScheduleSpec, registry
from archon_core.plugins.hints import explain_none


def schedules(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the pipeline schedules."""
    installed = registry()
    specs = installed.all(ScheduleSpec)
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "aliases": list(spec.aliases),
                    "stages_per_rank": spec.stages_per_rank,
                    "placement": spec.placement,
                    "splits_backward": spec.splits_backward,
                    "package": installed.origin(spec),
                    "summary": spec.summary,
                }
                for spec in specs
            ]
        )
        return
    if specs:
        print_table(
            ("schedule", "aliases", "stages per rank", "placement", "splits backward", "package"),
            (
                (
                    spec.name,
                    ", ".join(spec.aliases),
                    "2 or more" if spec.stages_per_rank is None else str(spec.stages_per_rank),
                    spec.placement,
                    "yes" if spec.splits_backward else "no",
                    installed.origin(spec),
                )
                for spec in specs
            ),
        )
    else:
        print_text(explain_none(ScheduleSpec.kind, installed.plugins))
    remark_on_plugins(installed)
