"""What the commands print: tables and JSON on standard output, errors and remarks on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from archon_core.plugins import Registry


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; long cells fold, so that nothing is cut off in a narrow terminal or a pipe."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    Console().print(table)


def print_json(data: Any) -> None:
    """Print data for programs: indented JSON without colours."""
    print(json.dumps(data, indent=2))


def print_text(text: str | Text) -> None:
    """Print a text as it is: no markup, and no line breaks of ours inside commands that users copy."""
    Console().print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def print_remark(text: str, *, label: str = "", style: str = "yellow") -> None:
    """Print to standard error, with a coloured label before the text."""
    Console(stderr=True).print(Text.assemble((label, style), text), soft_wrap=True)


def print_error(error: BaseException) -> None:
    """Print an error for a user: its message and notes, without a traceback."""
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    print_remark("\n".join(lines), label="error: ", style="bold red")


def remark_on_plugins(registry: Registry) -> None:
    """Say on standard error which plugins a listing lacks."""
    missing = [f"{plugin} ({plugin.status})" for plugin in registry.plugins if plugin.status != "loaded"]
    if missing:
        print_remark(f"not loaded: {', '.join(missing)}; `archon plugins` says why")
    if any(plugin.problems for plugin in registry.plugins) or registry.problems:
        print_remark("some plugins have problems; `archon plugins` shows them")
