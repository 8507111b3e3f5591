"""The resolved options of runs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name of an option -> its value as text.

    >>> flatten({"actor": {"lr": 0.1, "tags": ["a"]}, "seed": None})
    {'actor.lr': '0.1', 'actor.tags': '[a]', 'seed': 'null'}
    """
    if isinstance(config, Mapping) and (config or not prefix):
        found: dict[str, str] = {}
        for name, value in config.items():
            found |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: _text(config)}


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def draw_side_by_side(
    head: str, names: Sequence[str], columns: Sequence[Mapping[str, str]], *, search: str = ""
) -> str:
    """A table with one row per key and one column per run; rows that differ are marked.

    Args:
        head: title of the first column.
        names: of the runs.
        columns: per run, key -> value.
        search: label of a field that filters the rows; none without it.
    """
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = []
    for key in keys:
        values = [column.get(key, "") for column in columns]
        differs = ' class="marked"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f"<tr{differs}><td>{escape(key)}</td>{cells}</tr>")
    titles = "".join(f"<th>{escape(name)}</th>" for name in names)
    table = f"<table><thead><tr><th>{escape(head)}</th>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    only = '<label><input type="checkbox" data-differing> only differences</label>' if len(columns) > 1 else ""
    field = f'<input type="search" placeholder="{escape(search)}" aria-label="{escape(search)}">' if search else ""
    controls = f'<div class="filter">{field}{only}</div>' if field or only else ""
    return f'<div class="options">{controls}<div class="scroll texts">{table}</div></div>'
