"""docs/reference/cli.md: every command of ``archon`` with its arguments and options, from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from archon_core.cli.commands import COMPLETION_OPTIONS, build_command, core_commands, known_commands
from archon_core.cli.main import app
from archon_core.plugins import registry
from generated.tables import code, table

HEADER = """# Command line

This page lists every command with its arguments and options; `archon COMMAND --help` shows the same for an installed
command. `python tooling/docs.py` generates it from the commands.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | something failed during the run |
| 2 | you have to change something; the message says what was found, what is allowed and how to fix it |
| 130, 143 | stopped by Ctrl-C or SIGTERM |

"""


def render_command_line(is_ours: Any) -> str:
    """The page; ``is_ours`` says which distributions are documented."""
    parts = [HEADER, "## `archon`\n\n", _options(typer.main.get_command(app))]
    core = core_commands()
    rows = []
    bodies = []
    for name, spec in known_commands().items():
        package = "archon-core" if name in core else registry().origin(spec)
        if name not in core and not is_ours(spec.origin):
            continue
        command = build_command(spec)
        title = f"archon {name}"
        rows.append([f"[`{title}`](#{_anchor(title)})", package, spec.summary[:1].upper() + spec.summary[1:]])
        bodies.append(_command(title, command, package))
    return "".join([*parts, "\n", table(["command", "package", ""], rows), *bodies])


def _command(title: str, command: Any, package: str) -> str:
    inner = getattr(command, "commands", {})
    lines = [f"\n## `{title}`\n\n"]
    if package != "archon-core":
        lines.append(f"Part of {package}.\n\n")
    lines.append(_description(command.help))
    lines += [_usage(title, command), _arguments(command), _options(command)] if not inner else []
    for name, sub in inner.items():
        lines += [f"### `{title} {name}`\n\n", _description(sub.help)]
        lines += [_usage(f"{title} {name}", sub), _arguments(sub), _options(sub), "\n"]
    return "".join(lines)


def _usage(title: str, command: Any) -> str:
    words = [title, *(["[OPTIONS]"] if any(_is_option(p) for p in command.params) else [])]
    for parameter in command.params:
        if not _is_option(parameter):
            name = _argument_name(parameter)
            words.append((name if parameter.required else f"[{name}]") + ("..." if parameter.nargs == -1 else ""))
    return f"```text\n{' '.join(words)}\n```\n\n"


def _arguments(command: Any) -> str:
    rows = [[code(_argument_name(p)), _escaped(p.help or "")] for p in command.params if not _is_option(p)]
    return table(["argument", ""], rows) + "\n" if rows else ""


def _options(command: Any) -> str:
    options = [p for p in command.params if _is_option(p) and p.name not in COMPLETION_OPTIONS]
    rows = [[_names(p), _default(p), _escaped(p.help or "")] for p in options]
    return table(["option", "default", ""], rows) if rows else ""


def _names(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or _value(option.type)}"
    return ", ".join(code(f"{name}{value}") for name in names)


def _value(kind: Any) -> str:
    choices = getattr(kind, "choices", None)
    return (
        "|".join(choices)
        if choices
        else re.sub(r"\W", "", str(getattr(kind, "name", "value"))).upper().removesuffix("RANGE")
    )


def _default(option: Any) -> str:
    if option.required:
        return "required"
    is_shown = not option.is_flag and option.default is not None and option.default != []
    return code(str(option.default)) if is_shown else ""


def _argument_name(argument: Any) -> str:
    return re.sub(r"[\[\].]", "", argument.metavar or argument.name).upper()


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option"


def _description(text: str | None) -> str:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "".join(f"{_escaped(' '.join(paragraph.split()))}\n\n" for paragraph in _coded(paragraphs))


def _coded(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs with what the terminal shows in bold as code."""
    for paragraph in paragraphs:
        yield re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", paragraph).replace("``", "`")


def _escaped(text: str) -> str:
    """Text with options as code, so that Markdown leaves their dashes alone."""
    parts = re.split(r"(`[^`]*`)", text.replace("\\[", "["))
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", part) for part in parts
    )


def _anchor(title: str) -> str:
    return title.replace(" ", "-")
