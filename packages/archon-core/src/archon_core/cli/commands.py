"""The subcommands of ``archon``, of core and of plugins. A command's target is imported when it is called, so that
``archon --help`` stays fast.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from archon_core.cli.console import print_remark
from archon_core.errors import PluginError
from archon_core.plugins import CommandSpec, registry
from archon_core.plugins.hints import not_installed
from archon_core.plugins.loader import load_core
from archon_core.ranks.environment import rank_environment

COMPLETION_OPTIONS = ("install_completion", "show_completion")


class Commands(TyperGroup):
    """Core's commands, then the plugins' commands. Core's commands work even if plugins are broken."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(known_commands())

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """The help, with a list of commands of packages that are not installed."""
        self.epilog = explain_missing_commands()
        super().format_help(ctx, formatter)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        """A stub for help and completion; ``resolve_command`` builds the runnable command."""
        spec = known_commands().get(cmd_name)
        if spec is None:
            return None
        panel = None if spec.name in core_commands() else f"Commands of {registry().origin(spec)}"
        return TyperCommand(name=spec.name, help=escape(spec.summary), rich_help_panel=panel)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str, Any, list[str]]:
        name, *rest = args
        if name not in core_commands() and rank_environment() is None:  # ranks would repeat what their launcher says
            for problem in registry().problems:
                print_remark(problem, label="warning: ")
        spec = core_commands().get(name) or registry().get(CommandSpec, name)
        return spec.name, build_command(spec), rest


@functools.cache
def core_commands() -> Mapping[str, CommandSpec]:
    """Core's commands by name. A plugin cannot replace them."""
    return {spec.name: spec for spec in load_core().specs if isinstance(spec, CommandSpec)}


def known_commands() -> dict[str, CommandSpec]:
    """All commands by name, without clashing ones."""
    core = core_commands()
    return dict(core) | {spec.name: spec for spec in registry().all(CommandSpec) if spec.name not in core}


def explain_missing_commands() -> str | None:
    """The commands of packages that are not installed, for the end of the help; ``None`` if there are none."""
    missing = not_installed(CommandSpec.kind, registry().plugins)
    listed = ", ".join(f"{name} (pip install {package})" for name, package in missing.items())
    return f"Not installed: {listed}" if listed else None


def build_command(spec: CommandSpec) -> Any:
    """Import a command and make it runnable.

    Raises:
        PluginError: the target does not import, or is neither a function nor a ``typer.Typer``.
    """
    target = spec.load()
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
        command.params = [option for option in command.params if option.name not in COMPLETION_OPTIONS]
    elif callable(target):
        single = typer.Typer(add_completion=False)
        single.command(help=_paragraphs(target.__doc__) if target.__doc__ else escape(spec.summary))(target)
        command = typer.main.get_command(single)
    else:
        raise PluginError(
            f"command {spec.name!r} of {registry().origin(spec)}: target {spec.target!r} is a "
            f"{type(target).__name__}; name a function or a typer.Typer"
        )
    command.name = spec.name
    return command


def _paragraphs(docstring: str) -> str:
    """The docstring with one line per paragraph: rich would keep the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n"))
