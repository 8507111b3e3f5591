"""Error messages for layouts: found, with carets under the string, allowed, and fix.

::

    layout 'archon:d1p2e2': found e2, which needs a multiple of 2 ranks ...
      archon:d1p2e2
                 ^^
    allowed: ...
    fix: use 'archon:d2p2e2' (4 ranks) or 'archon:d1p2' (2 ranks)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.errors import LayoutError

Span = tuple[int, int]
"""Start and end (exclusive) columns; equal where something is missing."""


@dataclass(frozen=True)
class Fault:
    """One error in a layout.

    Attributes:
        spans: marked columns of the string.
        found: a noun phrase.
        allowed: the violated rule.
        advice: the fix if no valid layout can be suggested.
        candidates: layouts that may be meant, most likely first. They are validated before they are suggested.
    """

    spans: tuple[Span, ...]
    found: str
    allowed: str
    advice: str = ""
    candidates: tuple[str, ...] = ()


def layout_error(text: str, fault: Fault, *, fix: str, option: str = "layout") -> LayoutError:
    """The error for ``fault`` in ``text``, the value of ``option``."""
    return LayoutError(
        f"{option} {text!r}: found {fault.found}\n{underline(text, fault.spans)}\nallowed: {fault.allowed}\nfix: {fix}"
    )


def underline(text: str, spans: Sequence[Span]) -> str:
    """``text`` and a line of carets below it, both indented by two.

    Characters that would shift the carets (tabs, line breaks, wide letters) are written as escapes.
    """
    shown = [char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text]
    width = sum(map(len, shown))
    carets = [" "] * (width + 1)
    for start, end in spans:
        first = sum(map(len, shown[:start]))
        last = max(sum(map(len, shown[:end])), first + 1)
        carets[first:last] = "^" * (last - first)
    return f"  {''.join(shown)}\n  {''.join(carets).rstrip()}"


def alternatives(suggestions: Sequence[tuple[str, int]]) -> str:
    """Layouts with their world sizes: ``use 'archon:d4e4' (4 ranks) or 'archon:d2e2' (2 ranks)``."""
    return "use " + " or ".join(
        f"{text!r} ({count(ranks, 'rank') if ranks else 'on the ranks of the trainer'})" for text, ranks in suggestions
    )


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def count(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
