"""Charts of the HTML page: bars as HTML, timelines as SVG without text. All scale to the width of the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from archon_core.contracts.pipeline import Action, ActionKind, TimedActions

COLOURS = (
    "#3168ac",
    "#0c7a68",
    "#be5e00",
    "#6c4a96",
    "#b0d0f5",
    "#9edecd",
    "#fccd91",
    "#d8c8ec",
    "#8c2f39",
    "#e8b4bc",
    "#667085",
    "#c0c7d2",
)
"""Dark and light shades of the hues of ``archon pipeline show``, which differ with red-green colour blindness, and red
for what comes last."""

OTHERS = "others"
GREY = "#8992a3"

KINDS: Mapping[ActionKind, tuple[str, str, str]] = {
    ActionKind.FORWARD: ("forward", "#3168ac", "#b0d0f5"),
    ActionKind.BACKWARD: ("backward", "#0c7a68", "#9edecd"),
    ActionKind.BACKWARD_INPUT: ("gradient of input", "#be5e00", "#fccd91"),
    ActionKind.BACKWARD_WEIGHT: ("gradient of weights", "#6c4a96", "#d8c8ec"),
}
"""Kind -> its name, its colour on the first stage of a rank, and on the last."""

MOST_ACTIONS = 64
"""Most actions of a rank that a timeline shows; on a phone they are then four pixels wide."""

_WIDTH = 1000.0
_ROW = 18.0


@dataclass(frozen=True)
class Bar:
    """A bar of stacked parts.

    Attributes:
        label: to its left.
        parts: name -> length.
        value: text to its right.
    """

    label: str
    parts: Mapping[str, float]
    value: str


@dataclass(frozen=True)
class Span:
    """A rectangle on a lane: its colour, start, end, and text for the mouse."""

    colour: str
    start: float
    end: float
    text: str


def colours_of(bars: Sequence[Bar]) -> dict[str, str]:
    """Name of a part -> colour, in the order in which parts appear."""
    names = [name for name in dict.fromkeys(name for bar in bars for name in bar.parts) if name != OTHERS]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    return {**colours, OTHERS: GREY} if any(OTHERS in bar.parts for bar in bars) else colours


def with_others(parts: Mapping[str, float], least: float) -> dict[str, float]:
    """The parts, those below ``least`` as one: they are too short to see."""
    shown = {name: size for name, size in parts.items() if size >= least}
    rest = sum(size for size in parts.values() if size < least)
    return {**shown, OTHERS: rest} if rest else shown


def draw_bars(bars: Sequence[Bar], *, limit: float | None = None, colours: Mapping[str, str] | None = None) -> str:
    """Horizontal bars on a common scale.

    Args:
        bars: from top to bottom.
        limit: draw a line there, such as the memory of the device.
        colours: of the parts; by default in the order in which they appear.
    """
    colours = colours_of(bars) if colours is None else colours
    longest = max([sum(bar.parts.values()) for bar in bars] + [limit or 0.0]) or 1.0
    rows = []
    for bar in bars:
        pieces = "".join(
            f'<i style="width:{100 * size / longest:.3f}%;background:{colours[name]}" title="{escape(name)}"></i>'
            for name, size in bar.parts.items()
            if size > 0
        )
        line = "" if limit is None else f'<b style="left:{100 * limit / longest:.3f}%"></b>'
        rows.append(
            f'<div class="bar"><span>{escape(bar.label)}</span><div class="track">{pieces}{line}</div>'
            f"<span>{escape(bar.value)}</span></div>"
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def draw_legend(entries: Mapping[str, str]) -> str:
    """Colours and their names, with values where the name includes them."""
    items = "".join(f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in entries.items())
    return f'<ul class="legend">{items}</ul>'


def draw_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: int | None = None, texts: bool = False
) -> str:
    """A table that scrolls sideways where the screen is narrow. Columns after the first are aligned to the right.

    Args:
        head: titles of the columns.
        rows: texts.
        marked: number of a row to set apart.
        texts: the cells are sentences: they wrap, and are aligned to the left.
    """
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        f"<tr{' class=marked' if number == marked else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    scroll = "scroll texts" if texts else "scroll"
    return f'<div class="{scroll}"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def draw_axis(start: float, end: float, unit: str) -> str:
    """Labels below a timeline, at round numbers."""
    step = round_step((end - start) / 6)
    labels = []
    for number in range(math.ceil(start / step), math.floor(end / step) + 1):
        place = 100 * (number * step - start) / (end - start)
        if place < 93:  # a label further right would leave the page
            labels.append(f'<span style="left:{place:.2f}%">{number * step:g}</span>')
    return f'<div class="lane"><span>{escape(unit)}</span><div class="axis">{"".join(labels)}</div></div>'


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, ...) from ``least``."""
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def end_of(timed: TimedActions) -> float:
    """When the last action of a pipeline ends; 0 without actions."""
    return max((stop for rank in timed for _, _, stop in rank), default=0.0)


def draw_pipeline(timed: TimedActions, rank_of: Sequence[int], unit: str = "s", *, scale: float = 0.0) -> str:
    """The timeline of a pipeline: one lane per pipeline rank. Of a long step, its start and its end.

    Args:
        timed: the actions with their starts and ends.
        rank_of: for each stage, the rank that holds it.
        unit: of the times.
        scale: time that is as wide as the page, to compare timelines; at least that of the whole step.
    """
    end = end_of(timed)
    assert end > 0, "a pipeline that does something takes time"
    scale = max(scale, end)
    longest = max(map(len, timed))
    kinds = {action.kind for rank in timed for action, _, _ in rank}
    parts = [draw_legend({name: first for kind, (name, first, _) in KINDS.items() if kind in kinds})]
    if longest <= MOST_ACTIONS:
        parts += _lanes(timed, rank_of, 0.0, scale, unit)
    else:
        window = min(end, scale * MOST_ACTIONS / 2 / longest)
        parts += ["<p class=note>Its start:</p>", *_lanes(timed, rank_of, 0.0, window, unit)]
        parts += ["<p class=note>Its end:</p>", *_lanes(timed, rank_of, end - window, end, unit)]
    if len(rank_of) > len(timed):
        parts.append("<p class=note>Dark: the first stage of a rank; light: its last.</p>")
    return "".join(parts)


def _lanes(timed: TimedActions, rank_of: Sequence[int], start: float, end: float, unit: str) -> list[str]:
    lanes = []
    for number, rank in enumerate(timed):
        spans = [
            Span(_colour(action, rank_of), max(begun, start), min(stop, end), str(action))
            for action, begun, stop in rank
            if begun < end and stop > start
        ]
        lanes.append(draw_lane(f"rank {number}", spans, start, end))
    return [*lanes, draw_axis(start, end, unit)]


def _colour(action: Action, rank_of: Sequence[int]) -> str:
    _, first, last = KINDS[action.kind]
    holder = rank_of[action.stage]
    held = [stage for stage, rank in enumerate(rank_of) if rank == holder]
    if len(held) == 1:
        return first
    return mixed(first, last, held.index(action.stage) / (len(held) - 1))


def mixed(first: str, last: str, share: float) -> str:
    """A colour between two ``#rrggbb``."""
    pairs = ((int(first[i : i + 2], 16), int(last[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def draw_lane(label: str, spans: Sequence[Span], start: float, end: float) -> str:
    """One lane of a timeline, between two times."""
    scale = _WIDTH / (end - start)
    rects = "".join(
        f'<rect x="{(span.start - start) * scale:.2f}" '
        f'width="{max(0.4, (span.end - span.start) * scale - 0.8):.2f}" height="{_ROW:g}" fill="{span.colour}">'
        f"<title>{escape(span.text)}</title></rect>"
        for span in spans
    )
    return (
        f'<div class="lane"><span>{escape(label)}</span><svg viewBox="0 0 {_WIDTH:g} {_ROW:g}" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{rects}</svg></div>'
    )


def draw_columns(values: Mapping[str, float], texts: Mapping[str, str], *, marked: str = "") -> str:
    """Vertical bars with a text above and a label below each."""
    highest = max(values.values(), default=0.0) or 1.0
    columns = "".join(
        f"<div{' class=marked' if name == marked else ''}><em>{escape(texts[name])}</em>"
        f'<i style="height:{100 * value / highest:.2f}px"></i><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="columns">{columns}</div>'
