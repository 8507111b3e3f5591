"""Draws timelines as SVG: one row per rank, to scale; numbers are micro-batches, colours are kinds and stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from archon_pipeline.palette import MEANING, colour, text_colour
from archon_pipeline.timeline import TimedAction
from archon_pipeline.view import View, format_number, round_step, shortest_labelled

_FONT = "font-family='Helvetica, Arial, sans-serif'"
_LEFT, _RIGHT, _TOP = 64, 204, 72
_ROW, _BAR, _AXIS, _GAP = 30, 24, 20, 22
_WIDEST_UNIT, _NARROWEST_UNIT, _AIM = 26.0, 14.0, 1240.0
_INK, _FAINT = "#101828", "#667085"


@dataclass(frozen=True)
class _Frame:
    """Dimensions of a picture.

    Attributes:
        per_time: pixels of one unit of time.
        font: size of the numbers in bars.
        band: time that one band covers; longer timelines continue below.
        width: of the whole picture.
    """

    per_time: float
    font: float
    band: float
    width: float


def render_svg(views: Sequence[View], title: str) -> str:
    """The SVG of one or more timelines, one above the other on a common time scale."""
    frame = _measure(views, title)
    parts: list[str] = []
    y = float(_TOP)
    for view in views:
        parts.append(_text(20, y - 14, view.describe(), size=13, fill=_FAINT))
        panel, y = _panel(view, frame, y + 6)
        parts += panel
        y += 34
    parts += _legend(views, y - 12)
    height = y + 14
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {frame.width:g} {height:g}' width='{frame.width:g}' "
        f"height='{height:g}' {_FONT}>"
    )
    background = f"<rect width='{frame.width:g}' height='{height:g}' fill='#ffffff'/>"
    heading = _text(20, 34, title, size=19, weight="bold")
    return "\n".join([head, background, heading, *parts, "</svg>"]) + "\n"


def _measure(views: Sequence[View], title: str) -> _Frame:
    end = max(view.timeline.end for view in views)
    short = shortest_labelled(views)
    unit = min(_WIDEST_UNIT, max(_NARROWEST_UNIT, _AIM * short / end if end else _WIDEST_UNIT))
    n_bands = max(1, round(end / short * unit / _AIM))
    # At least one action wide: a recording can consist of actions that took no time.
    band = max(1, math.ceil(round(end / short / n_bands, 6))) * short
    digits = len(str(max(view.n_micro_batches for view in views) - 1))
    texts = [(title, 10.5), *((view.describe(), 7.2) for view in views)]
    needed = max(len(text) * size for text, size in texts) + 40
    width = max(_LEFT + band * unit / short + _RIGHT, needed)
    return _Frame(unit / short, font=min(12.0, (unit - 2) / (0.6 * digits)), band=band, width=round(width))


def _panel(view: View, frame: _Frame, y: float) -> tuple[list[str], float]:
    """The rows of a view, band by band, and the y coordinate of their end."""
    parts = []
    end = view.timeline.end
    n_bands = max(1, math.ceil(round(end / frame.band, 6)))
    for band in range(n_bands):
        first, last = band * frame.band, min(end, (band + 1) * frame.band)
        width = (last - first) * frame.per_time
        for rank, (timed, summary) in enumerate(zip(view.timeline.ranks, view.summarise_ranks(), strict=True)):
            row = y + rank * _ROW
            parts.append(_text(20, row + 16.5, f"rank {rank}", size=12))
            parts.append(_rect(_LEFT, row, width, "#f2f4f7"))
            parts += (_bar(view, one, frame, row, first, last) for one in timed if one.end > first and one.start < last)
            if band == n_bands - 1:
                unit = f" {view.unit}" if view.unit else ""
                note = f"peak {format_number(summary.share)} x, waits {format_number(summary.waits)}{unit}, "
                note += f"{summary.sends} sends"
                parts.append(_text(_LEFT + width + 10, row + 16.5, note, size=11, fill=_FAINT))
        y += len(view.timeline.ranks) * _ROW
        parts += _axis(frame, y + 8, first, last)
        y += _AXIS + _GAP * (band < n_bands - 1)
    return parts, y


def _axis(frame: _Frame, y: float, first: float, last: float) -> list[str]:
    """Time axis under a band, with ticks at round numbers."""
    step = round_step(60 / frame.per_time)
    parts = []
    for number in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1):
        x = _LEFT + (number * step - first) * frame.per_time
        parts.append(f"<path d='M{x:.6g} {y - 10:g}v4' stroke='{_FAINT}'/>")
        parts.append(_text(x, y + 6, f"{number * step:g}", size=11, fill=_FAINT, anchor="middle"))
    return parts


def _bar(view: View, timed: TimedAction, frame: _Frame, y: float, first: float, last: float) -> str:
    """An action, or the part of it between the times ``first`` and ``last``."""
    action = timed.action
    place, n_places = view.place(action), view.stages_per_rank
    start, end = max(first, timed.start), min(last, timed.end)
    x, width = _LEFT + (start - first) * frame.per_time, (end - start) * frame.per_time
    unit = f" {view.unit}" if view.unit else ""
    hint = f"{action}: {MEANING[action.kind]} of micro-batch {action.micro_batch} on stage {action.stage}, "
    hint += f"{format_number(timed.start)} to {format_number(timed.end)}{unit}"
    number = str(action.micro_batch)
    # Written only where it fits.
    label = ""
    if width >= 0.6 * frame.font * len(number):
        label = _text(
            x + width / 2, y + 16.2, number, size=frame.font, fill=text_colour(place, n_places), anchor="middle"
        )
    bar = _rect(x, y, width, colour(action.kind, place, n_places), edge=True)
    return f"<g><title>{escape(hint)}</title>{bar}{label}</g>"


def _legend(views: Sequence[View], y: float) -> list[str]:
    n_places = views[0].stages_per_rank
    parts, x = [], 20.0
    for kind in MEANING:
        if not any(kind in view.kinds for view in views):
            continue
        for place in range(n_places):
            parts.append(_rect(x, y - 11, 16, colour(kind, place, n_places), height=14))
            x += 16
        parts.append(_text(x + 6, y, MEANING[kind], size=12))
        x += 26 + 6.4 * len(MEANING[kind])
    if n_places > 1:
        parts.append(_text(x, y, "dark: a rank's first stage, light: its last", size=12, fill=_FAINT))
    return parts


def _rect(x: float, y: float, width: float, fill: str, *, height: float = _BAR, edge: bool = False) -> str:
    line = " stroke='#ffffff' stroke-width='0.8'" if edge else ""
    return f"<rect x='{x:.6g}' y='{y:g}' width='{width:.6g}' height='{height:g}' fill='{fill}'{line}/>"


def _text(
    x: float, y: float, text: str, *, size: float, fill: str = _INK, weight: str = "normal", anchor: str = "start"
) -> str:
    optional = "" if weight == "normal" else f" font-weight='{weight}'"
    optional += "" if anchor == "start" else f" text-anchor='{anchor}'"
    return f"<text x='{x:.6g}' y='{y:.6g}' font-size='{size:.3g}' fill='{fill}'{optional}>{escape(text)}</text>"
