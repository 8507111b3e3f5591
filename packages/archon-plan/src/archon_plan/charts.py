"""Charts of the HTML page: bars as HTML, timelines as SVG without text. All scale to the width of the screen."""

from __future__ import annotations

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
    "#667085",
    "#c0c7d2",
    "#8c2f39",
    "#e8b4bc",
)
"""Dark and light shades of the hues of ``archon pipeline show``, which differ with red-green colour blindness, then
greys and reds."""

KINDS: Mapping[ActionKind, tuple[str, str, str]] = {
    ActionKind.FORWARD: ("forward", "#3168ac", "#b0d0f5"),
    ActionKind.BACKWARD: ("backward", "#0c7a68", "#9edecd"),
    ActionKind.BACKWARD_INPUT: ("gradient of input", "#be5e00", "#fccd91"),
    ActionKind.BACKWARD_WEIGHT: ("gradient of weights", "#6c4a96", "#d8c8ec"),
}
"""Kind -> its name, its colour on the first stage of a rank, and on the last."""

MOST_TITLES = 1_500
"""Actions of a timeline up to which each has a text for the mouse; larger pages would load slowly on phones."""

MOST_ACTIONS = 6_000
"""Actions that a timeline draws at most, from its start."""

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


def colours_of(bars: Sequence[Bar]) -> dict[str, str]:
    """Name of a part -> colour, in the order in which parts appear."""
    names = dict.fromkeys(name for bar in bars for name in bar.parts)
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


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


def draw_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: int | None = None) -> str:
    """A table that scrolls sideways where the screen is narrow. Columns after the first are aligned to the right.

    Args:
        head: titles of the columns.
        rows: texts.
        marked: number of a row to set apart.
    """
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        f"<tr{' class=marked' if number == marked else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def draw_axis(end: float, unit: str) -> str:
    """Labels below a timeline: start, quarters and end."""
    labels = "".join(f"<span>{end * part / 4:.3g}</span>" for part in range(5))
    return f'<div class="lane"><span>{escape(unit)}</span><div class="axis">{labels}</div></div>'


def draw_pipeline(timed: TimedActions, rank_of: Sequence[int], unit: str = "s") -> str:
    """The timeline of a pipeline: one lane per pipeline rank.

    Args:
        timed: the actions with their starts and ends.
        rank_of: for each stage, the rank that holds it.
        unit: of the times.
    """
    n_actions = sum(map(len, timed))
    end = max((stop for rank in timed for _, _, stop in rank), default=0.0) or 1.0
    shown = end
    if n_actions > MOST_ACTIONS:
        shown = sorted(start for rank in timed for _, start, _ in rank)[MOST_ACTIONS]
    lanes = []
    for number, rank in enumerate(timed):
        spans = [(_colour(action, rank_of), start, min(stop, shown), str(action)) for action, start, stop in rank]
        spans = [span for span in spans if span[1] < shown]
        lanes.append(draw_lane(f"rank {number}", spans, shown, titles=n_actions <= MOST_TITLES))
    kinds = {action.kind for rank in timed for action, _, _ in rank}
    legend = {name: first for kind, (name, first, _) in KINDS.items() if kind in kinds}
    note = f"<p class=note>The first {shown:.3g} of {end:.3g} {escape(unit)}.</p>" if shown < end else ""
    if len(rank_of) > len(timed):
        note += "<p class=note>Dark: the first stage of a rank; light: its last.</p>"
    return draw_legend(legend) + "".join(lanes) + draw_axis(shown, unit) + note


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


def draw_lane(
    label: str, spans: Sequence[tuple[str, float, float, str]], end: float, *, titles: bool = True
) -> str:
    """One lane of a timeline.

    Args:
        label: to its left.
        spans: colour, start, end and text for the mouse.
        end: time at the right edge.
        titles: whether to include the texts.
    """
    scale = _WIDTH / end
    rects = "".join(
        f'<rect x="{start * scale:.2f}" width="{max(0.4, (stop - start) * scale - 0.6):.2f}" height="{_ROW:g}" '
        f'fill="{colour}">{f"<title>{escape(text)}</title>" if titles else ""}</rect>'
        for colour, start, stop, text in spans
    )
    return (
        f'<div class="lane"><span>{escape(label)}</span><svg viewBox="0 0 {_WIDTH:g} {_ROW:g}" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{rects}</svg></div>'
    )


def draw_columns(values: Mapping[str, float], texts: Mapping[str, str], *, marked: str = "") -> str:
    """Vertical bars with a text above and a label below each."""
    highest = max(values.values(), default=0.0) or 1.0
    columns = "".join(
        f'<div{" class=marked" if name == marked else ""}><em>{escape(texts[name])}</em>'
        f'<i style="height:{100 * value / highest:.2f}px"></i><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="columns">{columns}</div>'
