"""Draws timelines in a terminal: one row per rank, wrapped into bands where the terminal is too narrow.

An action is labelled with kind and micro-batch (``F12``) where there is room, else with its kind alone. A capital
letter stands for the first stage of a rank and a small one for later stages, so the drawing is readable without
colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from archon_pipeline.palette import MEANING, colour, text_colour
from archon_pipeline.timeline import TimedAction
from archon_pipeline.view import View, round_step, shortest_labelled

_LABELLED_BANDS = 4
"""Most bands of a drawing with micro-batch numbers; where more would be needed, only kinds are written."""

_MOST_BANDS = 6
_WAITS = "·"


@dataclass(frozen=True)
class _Scale:
    """The time scale of a drawing.

    Attributes:
        columns_per_time: columns of one unit of time.
        band: columns of a band.
        n_bands: number of bands.
        label: columns of a label; 0 if only kinds are written.
    """

    columns_per_time: float
    band: int
    n_bands: int
    label: int


def draw(views: Sequence[View], width: int) -> list[Text]:
    """The lines of a drawing, views one above the other on a common time scale.

    Args:
        views: the views to draw.
        width: columns of the terminal.
    """
    margin = max(len(_row_name(view, rank)) for view in views for rank in range(len(view.timeline.ranks))) + 1
    scale = _choose_scale(views, max(20, width - margin))
    lines = []
    for band in range(scale.n_bands):
        lines.append(_axis(scale, band, margin, max(view.timeline.end for view in views)))
        for view in views:
            for rank, timed in enumerate(view.timeline.ranks):
                row = Text(_row_name(view, rank).ljust(margin), "bold", no_wrap=True)
                row.append_text(_row(view, timed, scale, band, view.timeline.end))
                lines.append(row)
        lines.append(Text())
    return [*lines, *_legend(views, width)]


def _row_name(view: View, rank: int) -> str:
    return f"{view.name} {rank}".strip() if view.name else f"rank {rank}"


def _choose_scale(views: Sequence[View], columns: int) -> _Scale:
    end = max(view.timeline.end for view in views)
    short = shortest_labelled(views)
    label = 1 + len(str(max(view.n_micro_batches for view in views) - 1))
    for cell in (label + 1, label):
        n_bands = _count_bands(end / short * cell, columns)
        if n_bands <= _LABELLED_BANDS:
            # A drawing that fits one band may be as wide as the terminal, but not much wider than its labels.
            wide = min((label + 3) / short, columns / end) if n_bands == 1 and end else 0.0
            return _cut_evenly(max(cell / short, wide), cell, columns, end, label)
    n_bands = min(_MOST_BANDS, _count_bands(end / short, columns))
    return _cut_evenly(min(1 / short, n_bands * columns / end), 1, columns, end, 0)


def _cut_evenly(columns_per_time: float, cell: int, columns: int, end: float, label: int) -> _Scale:
    """Bands of equal width that end between cells, as far as there is room."""
    total = end * columns_per_time
    n_bands = _count_bands(total, columns)
    band = math.ceil(round(total, 6) / n_bands)
    band += -band % cell if n_bands > 1 else 0
    return _Scale(columns_per_time, min(band, columns), n_bands, label)


def _count_bands(total: float, columns: int) -> int:
    # Rounded, so that 76.00000001 columns do not need another band.
    return max(1, math.ceil(round(total, 6) / columns))


def _axis(scale: _Scale, band: int, margin: int, end: float) -> Text:
    """Time axis above a band, with labels at round numbers."""
    line = [" "] * scale.band
    step = round_step(12 / scale.columns_per_time)
    first = math.ceil(band * scale.band / scale.columns_per_time / step - 1e-9)
    for number in range(first, first + scale.band):
        column = round(number * step * scale.columns_per_time) - band * scale.band
        text = f"{number * step:g}"
        if column + len(text) > scale.band or number * step > end:
            break
        line[column : column + len(text)] = text
    return Text(" " * margin + "".join(line).rstrip(), "dim", no_wrap=True)


def _row(view: View, rank: Sequence[TimedAction], scale: _Scale, band: int, end: float) -> Text:
    first, last = band * scale.band, (band + 1) * scale.band
    row = Text(no_wrap=True)
    at = first
    for timed in rank:
        start, stop = (round(time * scale.columns_per_time) for time in (timed.start, timed.end))
        # An action that crosses the end of a band continues in the next one.
        visible_from, visible_to = max(start, at), min(stop, last)
        if visible_to <= visible_from:
            continue
        row.append(_WAITS * (visible_from - at), "dim")
        place, n_places = view.place(timed.action), view.stages_per_rank
        style = f"{text_colour(place, n_places)} on {colour(timed.action.kind, place, n_places)}"
        row.append(_cell(timed, place, stop - start, scale.label)[visible_from - start : visible_to - start], style)
        at = visible_to
    row.append(_WAITS * (min(last, round(end * scale.columns_per_time)) - at), "dim")
    return row


def _cell(timed: TimedAction, place: int, width: int, label: int) -> str:
    """The text of an action, as wide as its duration."""
    kind = timed.action.kind.value if place == 0 else timed.action.kind.value.lower()
    if not label or width < label:
        return kind + "─" * (width - 1)
    text = f"{kind}{timed.action.micro_batch}".ljust(label)
    # The dash shows the duration without colour; the last column separates neighbours.
    rest = width - label
    return text if rest == 0 else text + "─" * (rest - 1) + " "


def _legend(views: Sequence[View], width: int) -> list[Text]:
    view = views[0]
    parts = []
    for kind in MEANING:
        if any(kind in each.kinds for each in views):
            sample = Text(f" {kind.value} ", f"{text_colour(0, 1)} on {colour(kind, 0, 1)}")
            parts.append(sample + Text(f" {MEANING[kind]}"))
    parts.append(Text(f"{_WAITS} waits"))
    if view.stages_per_rank > 1:
        parts.append(Text("capitals: a rank's first stage"))
        parts.append(Text("small and lighter: its later ones" if view.stages_per_rank > 2 else "small: its second"))
    lines, line = [], Text()
    for part in parts:
        if line and len(line) + 3 + len(part) > width:
            lines.append(line)
            line = Text()
        line = line + Text("   ") + part if line else part
    return [*lines, line]
