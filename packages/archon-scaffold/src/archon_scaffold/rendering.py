"""Renders the files of a package from jinja templates."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SUFFIX = ".jinja"
TEMPLATES = Path(__file__).parent / "templates"


LINE = 120
"""Line length of generated code."""


def literal(value: Any, indent: int = 0, name: str = "") -> str:
    """A value as Python source, formatted as ruff would.

    Args:
        indent: of its line.
        name: the key before it in its line.
    """
    short = _one_line(value)
    if not isinstance(value, (Mapping, list, tuple)) or indent + len(name) + len(short) + len('"": ,') <= LINE:
        return short
    inside = indent + 4
    if isinstance(value, Mapping):
        lines = [f"{_one_line(key)}: {literal(item, inside, str(key))}," for key, item in value.items()]
        start, end = "{", "}"
    else:
        lines = [f"{literal(item, inside)}," for item in value]
        start, end = "[", "]"
    return "\n".join([start, *(" " * inside + line for line in lines), " " * indent + end])


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_one_line(key)}: {_one_line(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_one_line(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def comment(text: str, indent: int) -> str:
    """A text as comment lines; the first is indented by the template."""
    lines = textwrap.wrap(text, LINE - indent - 2, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(f"# {line}" for line in lines)


def quoted(text: str, indent: int) -> str:
    """A text as items of a list of strings, one per line; the first is indented by the template."""
    lines = textwrap.wrap(text, LINE - indent - 12, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(f"{json.dumps(line, ensure_ascii=False)}," for line in lines)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"literal": literal, "comment": comment, "quoted": quoted}
    return environment


def render_folder(folder: str, context: Mapping[str, Any], *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """The files rendered from a folder of templates: path -> text.

    Args:
        folder: below ``templates``. In a path, ``MODULE`` stands for ``context["module"]``, and ``DOT`` for a dot,
            since build tools leave out dot files.
        context: variables of the templates.
        without: templates to leave out, by their paths in the folder.
    """
    files = {}
    for path in sorted((TEMPLATES / folder).rglob("*")):
        inside = path.relative_to(TEMPLATES / folder).as_posix()
        if not path.is_file() or inside in without:
            continue
        target = inside.removesuffix(SUFFIX).replace("MODULE", context["module"]).replace("DOT", ".")
        if inside.endswith(SUFFIX):
            files[target] = _environment().get_template(f"{folder}/{inside}").render(context)
        else:
            files[target] = path.read_text(encoding="utf-8")
    return files
