"""Pieces of the HTML page that several of its sections use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from archon_core.page.charts import Bar, draw_bars


def list_of_bars(entries: Iterable[tuple[str, float, str]]) -> str:
    """One bar per entry: name, length and text. On a narrow screen names are above their bars."""
    bars = [Bar(name, {"": value}, text) for name, value, text in entries]
    return draw_bars(bars, colours={"": "var(--accent)"}).replace('class="bars"', 'class="bars long"', 1)


def tiles(values: Mapping[str, str]) -> str:
    """The main numbers: name -> value."""
    items = "".join(f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>" for name, value in values.items())
    return f'<ul class="facts">{items}</ul>'


def paragraph(text: str) -> str:
    """A paragraph; nothing for an empty text."""
    return f"<p>{escape(text)}</p>" if text else ""


def remark(text: str) -> str:
    """A paragraph in small print."""
    return f"<p class=note>{escape(text)}</p>"


def folded(title: str, content: str) -> str:
    """Content that is shown after a click on its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
