"""Output of commands: tables and JSON on standard output, errors and remarks on standard error."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from archon_core.plugins import Registry

GAP = "  "
"""Between two columns."""


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    details: Iterable[Sequence[str]] = (),
    wraps: bool = True,
) -> None:
    """Print a table that fits the terminal without breaking a word.

    Cells wrap between words. If the table is still too wide, each row becomes a block of ``column  value`` lines.

    Args:
        columns: headings.
        rows: one cell per column.
        details: per row, indented lines to print below it.
        wraps: ``False`` for files and pipes, which have no width: each row is one line, however long.
    """
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    under = [*details] or [()] * len(cells)
    plain = [list(columns), *([cell.plain for cell in row] for row in cells)]
    console = Console() if wraps else Console(width=_natural_width(plain))
    widths = fit_columns(plain, console.width)
    if widths is None:
        indent = max(map(len, columns)) + len(GAP)
        for row, lines in zip(cells, under, strict=True):
            for column, cell in zip(columns, row, strict=True):
                if cell.plain:
                    print_hanging(f"{column:<{indent}}{cell.plain}", indent=indent)
            _print_details(lines)
            print()
        return
    for row, lines in zip([[Text(column, "bold") for column in columns], *cells], [(), *under], strict=True):
        grid = Table.grid(padding=(0, len(GAP)), pad_edge=False)
        for width in widths:
            grid.add_column(width=width)
        grid.add_row(*row)
        console.print(grid)
        _print_details(lines)


def fit_columns(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Column widths with which all rows fit into ``width`` characters without broken words; ``None`` if impossible.

    Args:
        rows: the headings, then the cells.
        width: of the terminal, in characters.
    """
    by_column = list(zip(*rows, strict=True))
    widths = [max(map(len, cells)) for cells in by_column]
    least = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in by_column]
    available = width - len(GAP) * (len(widths) - 1)
    if sum(least) > available:
        return None
    while sum(widths) > available:
        # Shrink the widest column that can still wrap.
        widest = max((n for n in range(len(widths)) if widths[n] > least[n]), key=lambda n: widths[n])
        widths[widest] -= 1
    return widths


def _natural_width(rows: Sequence[Sequence[str]]) -> int:
    """The width of the columns if no cell wraps, with the gaps between them."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _print_details(lines: Sequence[str]) -> None:
    for line in lines:
        print_hanging(f"    {line}", indent=8)


def print_hanging(text: str, *, indent: int) -> None:
    """Print a text wrapped between words, with a hanging indent."""
    print(wrap_hanging(text, indent=indent))


def wrap_hanging(text: str, *, indent: int, first: str = "") -> str:
    """Wrap a text between words at the width of the terminal.

    Args:
        text: without line breaks.
        indent: of the second and further lines, in characters.
        first: indent of the first line.
    """
    width = max(Console().width, indent + 1)
    form = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.wrap(text, width, initial_indent=first, **form))


def print_json(data: Any) -> None:
    """Print indented JSON without colours."""
    print(json.dumps(data, indent=2))


def print_text(text: str | Text) -> None:
    """Print a text literally: no markup, and no line wrapping, which would break commands that users copy."""
    Console().print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


def print_remark(text: str, *, label: str = "", style: str = "yellow") -> None:
    """Print to standard error, with a coloured label before the text."""
    Console(stderr=True).print(Text.assemble((label, style), text), soft_wrap=True)


def print_error(error: BaseException) -> None:
    """Print an error for a user: its message and notes, without a traceback."""
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    print_remark("\n".join(lines), label="error: ", style="bold red")


def remark_on_plugins(registry: Registry) -> None:
    """Print to standard error the plugins that are missing in a listing."""
    missing = [f"{plugin} ({plugin.status})" for plugin in registry.plugins if plugin.status != "loaded"]
    if missing:
        print_remark(f"not loaded: {', '.join(missing)}; `archon plugins` shows the causes")
    if any(plugin.problems for plugin in registry.plugins) or registry.problems:
        print_remark("some plugins have problems; `archon plugins` shows them")
