"""``parse_layout``: parses and checks a layout; errors suggest valid layouts."""

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
    """Parse a layout such as ``archon:d4p2t2``. ``str()`` of the result equals ``text``.

    Args:
        text: the layout.
        backends: engines by name; ``backend_table`` builds it from installed specs.
        option: the option with the layout, such as ``actor.backend``, for messages.

    Raises:
        LayoutError: the layout is malformed, or its sizes are inconsistent. The message marks the place, and suggests
            valid layouts.
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
    """The valid layouts among ``candidates``, without duplicates, in order."""
    for text in dict.fromkeys(candidates):
        outcome = _read(text, backends)
        if isinstance(outcome, Layout):
            yield outcome


def suggest(candidates: Iterable[str], backends: Mapping[str, Backend], *, most: int = 3) -> str:
    """The text of the first ``most`` valid ``candidates``; empty if there are none."""
    layouts = islice(working(candidates, backends), most)
    suggestions = [(str(layout), layout.world_size) for layout in layouts]
    return alternatives(suggestions) if suggestions else ""


def _read(text: str, backends: Mapping[str, Backend]) -> Layout | Fault:
    """The layout, or its first fault."""
    try:
        layout = read_layout(text, backends)
    except UnreadableError as error:
        return error.fault
    return next(faults(layout, backends), layout)


def _fix(text: str, fault: Fault, backends: Mapping[str, Backend]) -> str:
    """The fix: valid candidates, else a guess at the intended layout, and the rule's advice."""
    proposal = suggest(fault.candidates, backends) or suggest(mended(text, backends), backends, most=1)
    example = next(iter(backends.values())).example()
    return "; or ".join(filter(None, (proposal, fault.advice))) or f"write it in the form of {example!r}"
