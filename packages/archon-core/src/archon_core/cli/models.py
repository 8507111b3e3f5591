"""``archon models``: the architectures that installed plugins serve."""

from __future__ import annotations

from typing import Annotated

import typer

from archon_core.cli.console import print_json, print_table, print_text, remark_on_plugins
from archon_core.plugins import ModelSpec, registry
from archon_core.plugins.hints import explain_none


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the model architectures."""
    installed = registry()
    specs = installed.all(ModelSpec)
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "aliases": list(spec.aliases),
                    "model_types": list(spec.model_types),
                    "capabilities": sorted(spec.capabilities),
                    "needs": list(spec.needs),
                    "package": installed.origin(spec),
                    "summary": spec.summary,
                }
                for spec in specs
            ]
        )
        return
    if specs:
        print_table(
            ("model", "model types", "capabilities", "needs", "package"),
            (
                (
                    ", ".join((spec.name, *spec.aliases)),
                    ", ".join(spec.model_types) or "any, when named",
                    " ".join(sorted(spec.capabilities)),
                    " ".join(spec.needs),
                    installed.origin(spec),
                )
                for spec in specs
            ),
        )
    else:
        print_text(explain_none(ModelSpec.kind, installed.plugins))
    remark_on_plugins(installed)
