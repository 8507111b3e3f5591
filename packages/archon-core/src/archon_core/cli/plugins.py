"""``archon plugins``: lists the installed plugins, their specs and their problems."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer
from rich.text import Text

from archon_core import __version__
from archon_core.cli.console import print_json, print_table, print_text
from archon_core.plugins import PLUGIN_API, PluginStatus, Registry, registry
from archon_core.plugins.hints import FIRST_STEPS, label

STYLES = {"loaded": "green", "failed": "bold red", "incompatible": "bold red", "disabled": "dim"}


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List installed plugins, what they provide, and their problems."""
    installed = registry()
    if as_json:
        print_json(describe_registry(installed))
        return
    print_table(
        ("plugin", "package", "version", "status"),
        (
            (plugin.name, plugin.distribution, plugin.version, Text(plugin.status, STYLES[plugin.status]))
            for plugin in installed.plugins
        ),
        details=map(_summarise_specs, installed.plugins),
    )
    for plugin in installed.plugins:
        for text in (plugin.cause, *plugin.problems):
            if text:
                print_text(f"\n{plugin.distribution} ({plugin.name}): {text}")
    for problem in installed.problems:
        print_text(f"\n{problem}")
    if len(installed.plugins) == 1:
        print_text(f"\nNo plugin is installed. {FIRST_STEPS}")


def describe_registry(installed: Registry) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "archon_core": __version__,
        "plugin_api": ".".join(map(str, PLUGIN_API)),
        "problems": list(installed.problems),
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "module": plugin.module,
                "status": plugin.status,
                "cause": plugin.cause,
                "problems": list(plugin.problems),
                "specs": [{"kind": spec.kind} | spec.as_data() for spec in plugin.specs],
            }
            for plugin in installed.plugins
        ],
    }


def _summarise_specs(plugin: PluginStatus) -> list[str]:
    """The names that a plugin provides, one line per kind."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for spec in plugin.specs:
        names[spec.kind].append(spec.name)
    return [f"{label(kind)}: {', '.join(of_kind)}" for kind, of_kind in names.items()]
