"""``parse_layout``: read a layout, check it, and explain what is wrong with it by layouts that work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from archon_core.layout.backends import BUILTIN_BACKENDS, Backend
from archon_core.layout.diagnostics import Fault, alternatives, layout_error
from archon_core.layout.layout import Layout
from archon_core.layout.rules import faults
from archon_core.layout.suggestions import mended
from archon_core.layout.syntax import UnreadableError, read_layout


def parse_layout(text: str, *, backends: Mapping[str, Backend] = BUILTIN_BACKENDS, option: str = "layout") -> Layout:
    """Read a layout such as ``archon:d4p2t2``. ``str()`` of the result is ``text`` again.

    Args:
        text: the layout.
        backends: engines by name; ``backend_table`` makes it from installed specs.
        option: what the text was written to, such as ``actor.backend``; error messages begin with it.

    Raises:
        LayoutError: it is malformed, or its sizes do not go together. The message shows the place, what was
            found, what is allowed, and layouts that work.
    """
    if isinstance(text, str):
        outcome = _read(text, backends)
    else:
        kind, text = type(text).__name__, repr(text)
        outcome = Fault(((0, 0),), f"a value of type {kind}", "text of the form <backend>:<sizes>")
    if isinstance(outcome, Fault):
        raise layout_error(text, outcome, fix=_fix(text, outcome, backends), option=option)
    return outcome


def working(candidates: Iterable[str], backends: Mapping[str, Backend]) -> Iterator[Layout]:
    """Those of ``candidates`` that are layouts without a fault, each once, in order."""
    for text in dict.fromkeys(candidates):
        outcome = _read(text, backends)
        if isinstance(outcome, Layout):
            yield outcome


def suggest(candidates: Iterable[str], backends: Mapping[str, Backend], *, most: int = 3) -> str:
    """Word the first ``most`` of ``candidates`` that work; empty when none does."""
    layouts = islice(working(candidates, backends), most)
    suggestions = [(str(layout), layout.world_size) for layout in layouts]
    return alternatives(suggestions) if suggestions else ""


def _read(text: str, backends: Mapping[str, Backend]) -> Layout | Fault:
    """The layout, or what is wrong first."""
    try:
        layout = read_layout(text, backends)
    except UnreadableError as error:
        return error.fault
    return next(faults(layout, backends), layout)


def _fix(text: str, fault: Fault, backends: Mapping[str, Backend]) -> str:
    """The best that can be said: layouts known to work, else a guess at what was meant, and the rule's own advice."""
    proposal = suggest(fault.candidates, backends) or suggest(mended(text, backends), backends, most=1)
    example = next(iter(backends.values())).example()
    return "; or ".join(filter(None, (proposal, fault.advice))) or f"write it in the form of {example!r}"
