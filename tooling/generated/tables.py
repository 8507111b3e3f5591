"""Markdown that generated pages are made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; line breaks in cells become spaces, and bars are escaped."""
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """Text as code; empty stays empty."""
    return f"`{text}`" if text else ""


def codes(texts: Iterable[str]) -> str:
    """Several, separated by commas."""
    return ", ".join(map(code, texts))


def prose(docstring: str | None) -> str:
    """A docstring up to its first section, as Markdown paragraphs."""
    text = re.split(r"\n\n(?:Attributes|Args|Raises|Returns):\n", inspect.cleandoc(docstring or ""), maxsplit=1)[0]
    return text.replace("``", "`")


def sentence(text: str) -> str:
    """One line, without a full stop at its end, for cells."""
    return " ".join(text.split()).removesuffix(".")


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))
