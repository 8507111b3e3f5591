"""Charts of the page: lengths are to scale, texts are escaped, long timelines show their start and end."""

from __future__ import annotations

import re

import pytest

from archon_core.contracts.pipeline import Action, TimedActions
from archon_core.page.charts import (
    COLOURS,
    GREY,
    MOST_ACTIONS,
    OTHERS,
    Bar,
    Span,
    colours_of,
    draw_axis,
    draw_bars,
    draw_columns,
    draw_lane,
    draw_pipeline,
    draw_table,
    mixed,
    round_step,
    with_others,
)


def widths(html: str) -> list[float]:
    return [float(found) for found in re.findall(r'<i style="width:([0-9.]+)%', html)]


def rects(html: str) -> list[tuple[float, float, str]]:
    """Start, width and colour of every rectangle of the lanes."""
    found = re.findall(r'<rect x="([0-9.]+)"\s+width="([0-9.]+)" height="18" fill="(#[0-9a-f]{6})"', html)
    return [(float(x), float(width), colour) for x, width, colour in found]


def test_bars_are_to_scale_with_the_limit() -> None:
    bars = [Bar("rank 0", {"weights": 30.0, "states": 10.0}, "40"), Bar("rank 1", {"states": 20.0}, "20")]
    assert widths(draw_bars(bars)) == [75, 25, 50]
    html = draw_bars(bars, limit=80.0)
    assert widths(html) == [37.5, 12.5, 25]
    assert html.count('<b style="left:100.000%">') == 2
    assert 'style="left:50.000%"' in draw_bars(bars, limit=20.0)


def test_a_part_has_one_colour_on_all_bars() -> None:
    bars = [Bar("a", {"x": 1.0, OTHERS: 1.0}, ""), Bar("b", {"y": 1.0, "x": 1.0}, "")]
    assert colours_of(bars) == {"x": COLOURS[0], "y": COLOURS[1], OTHERS: GREY}
    assert len(set(COLOURS)) == len(COLOURS)


def test_parts_that_are_too_short_become_one() -> None:
    assert with_others({"a": 5.0, "b": 0.5, "c": 0.25}, 1.0) == {"a": 5.0, OTHERS: 0.75}
    assert with_others({"a": 5.0}, 1.0) == {"a": 5.0}


def test_texts_are_escaped() -> None:
    text = "<script>"
    charts = (
        draw_bars([Bar(text, {text: 1.0}, text)]),
        draw_table((text,), [(text,)]),
        draw_table((text,), [(text,)], texts=True),
        draw_lane(text, [Span("#000000", 0.0, 1.0, text)], 0.0, 1.0),
        draw_columns({text: 1.0}, {text: text}),
        draw_axis(0.0, 1.0, text),
    )
    for chart in charts:
        assert text not in chart
        assert "&lt;script&gt;" in chart


def timed(n_micro_batches: int) -> TimedActions:
    """Two ranks of two stages each; forward passes of one second, backward passes of two."""
    ranks = []
    for rank in range(2):
        now, actions = float(rank), []
        for number in range(n_micro_batches):
            for stage in (rank, rank + 2):
                for letter, seconds in (("F", 1.0), ("B", 2.0)):
                    actions.append((Action.parse(f"{stage}{letter}{number}"), now, now + seconds))
                    now += seconds
        ranks.append(tuple(actions))
    return tuple(ranks)


def test_a_pipeline_has_one_lane_per_rank_to_scale() -> None:
    actions = timed(2)
    html = draw_pipeline(actions, (0, 1, 0, 1))
    assert html.count("<svg") == 2
    found = rects(html)
    assert len(found) == 16
    end = 13.0  # rank 1 starts a second later and works for 12
    first, second = found[0], found[1]
    assert first == pytest.approx((0.0, 1000 / end - 0.8, "#3168ac"), abs=0.01)
    assert second[0] == pytest.approx(1000 / end, abs=0.01)
    assert second[1] == pytest.approx(2000 / end - 0.8, abs=0.01)
    assert {colour for _, _, colour in found} == {"#3168ac", "#b0d0f5", "#0c7a68", "#9edecd"}, "light: later stages"
    assert "forward" in html
    assert "gradient of input" not in html


def test_timelines_of_one_scale_can_be_compared() -> None:
    assert rects(draw_pipeline(timed(2), (0, 1, 0, 1), scale=1.0)) == rects(draw_pipeline(timed(2), (0, 1, 0, 1)))
    found = rects(draw_pipeline(timed(2), (0, 1, 0, 1), scale=26.0))
    assert max(x + width for x, width, _ in found) == pytest.approx(500 - 0.8, abs=0.01)
    long = rects(draw_pipeline(timed(100), (0, 1, 0, 1), scale=1202.0))
    assert long[0][1] == pytest.approx(rects(draw_pipeline(timed(100), (0, 1, 0, 1)))[0][1] / 2, abs=0.5)


def test_a_long_pipeline_shows_its_start_and_its_end() -> None:
    actions = timed(100)
    html = draw_pipeline(actions, (0, 1, 0, 1))
    assert html.count("<svg") == 4
    assert "<title>0F0</title>" in html
    assert "<title>3B99</title>" in html
    assert "<title>0F50</title>" not in html
    assert len(rects(html)) <= 2 * (MOST_ACTIONS + 4)
    assert all(x + width <= 1000.5 for x, width, _ in rects(html))


@pytest.mark.parametrize(("least", "step"), [(0.011, 0.02), (1.0, 1.0), (1.01, 2.0), (4.2, 5.0), (60.0, 100.0)])
def test_axes_have_round_steps(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


def test_labels_of_an_axis_stay_on_the_page() -> None:
    labels = re.findall(r'left:([0-9.]+)%">([^<]+)<', draw_axis(11.2, 11.8, "s"))
    assert labels == [
        ("0.00", "11.2"),
        ("16.67", "11.3"),
        ("33.33", "11.4"),
        ("50.00", "11.5"),
        ("66.67", "11.6"),
        ("83.33", "11.7"),
    ]


def test_columns_are_to_scale_and_one_is_marked() -> None:
    html = draw_columns({"0": 10.0, "1": 20.0}, {"0": "10 per hour", "1": "20 per hour"}, marked="1")
    assert re.findall(r"height:([0-9.]+)px", html) == ["50.00", "100.00"]
    assert html.index("class=marked") > html.index("10 per hour")


def test_colours_mix_linearly() -> None:
    assert mixed("#000000", "#ffffff", 0.0) == "#000000"
    assert mixed("#000000", "#ff8000", 0.5) == "#804000"
