"""Refuses the axes of a layout that an installed engine cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from archon_core.layout.axes import AXIS_NAMES, list_letters
from archon_core.layout.diagnostics import Fault, Span, layout_error, listed
from archon_core.layout.grammar import suggest
from archon_core.layout.layout import Layout
from archon_core.layout.rules import with_derived_data, without_axes

NO_HINTS: Mapping[str, str] = MappingProxyType({})


def refuse_axes(layout: Layout, axes: str, *, hints: Mapping[str, str] = NO_HINTS, option: str = "layout") -> None:
    """Check that a layout uses no axis beyond ``axes``.

    Splitting inside experts (t of an ``ffn`` part) counts as an expert axis: it needs ``e``.

    Args:
        layout: the requested layout.
        axes: letters that the engine runs with a size above 1 (``TrainEngineSpec.axes``).
        hints: letter -> the command that adds the axis, such as ``{"p": "pip install archon-pipeline"}``.
        option: the option with the layout, for the message.

    Raises:
        LayoutError: with every refused axis, the supported axes, and a fix.
    """
    used = _used_axes(layout)
    refused = [(letter, name, span) for letter, name, span in used if letter not in axes]
    if not refused:
        return
    names = listed([name for _, name, _ in refused])
    fault = Fault(
        spans=tuple(span for _, _, span in refused),
        found=f"{names}, which the {layout.backend} engine cannot run as it is installed",
        allowed=f"sizes above 1 of {list_letters(axes)} only" if axes else "no size above 1",
    )
    letters = dict.fromkeys(letter for letter, _, _ in refused)
    remedies = [f"{letter} needs `{hints[letter]}`" for letter in letters if letter in hints]
    raise layout_error(str(layout), fault, fix="; ".join([_nearest(layout, axes), *remedies]), option=option)


def _used_axes(layout: Layout) -> list[tuple[str, str, Span]]:
    """Axes with a size above 1: the required letter, the name for messages, and the span."""
    used = [
        (letter, f"{AXIS_NAMES[letter]} ({letter}{size})", layout.span(letter))
        for letter, size in layout.dims
        if size > 1
    ]
    if layout.ffn is not None:
        names = {"e": AXIS_NAMES["e"], "t": "expert tensor parallelism"}
        used += [
            ("e", f"{names[letter]} ({letter}{size})", layout.span(letter, "ffn"))
            for letter, size in layout.ffn
            if size > 1 and letter in names
        ]
    return used


def _nearest(layout: Layout, axes: str) -> str:
    """A layout that the engine can run, on equally many ranks if possible."""
    kept = without_axes(layout, "".join(letter for letter in AXIS_NAMES if letter not in axes))
    hybrid = [str(with_derived_data(kept))] if "e" in axes else []
    candidates = (*hybrid, str(replace(kept, ffn=None)), layout.engine.example())
    known = {layout.backend: layout.engine}
    return suggest(candidates, known, most=1)
