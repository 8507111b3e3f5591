"""Numbers as text, and the bar of memory."""

from __future__ import annotations

import pytest

from archon_plan.cost_report import memory_bar
from archon_plan.numbers import count, gib, percent, seconds, span
from archon_plan.results import MemoryPart

GIB = 2.0**30


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (17, "17 B"), (3 * 2**20, "3.00 MiB"), (1.5 * GIB, "1.50 GiB"), (123.44 * GIB, "123.4 GiB")],
)
def test_memory_is_written_in_the_unit_that_shows_it(number: float, text: str) -> None:
    assert gib(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.0, "0 s"), (12.34, "12.3 s"), (0.0456, "45.6 ms"), (7.89e-6, "7.890 us"), (3e-9, "3 ns")]
)
def test_times_are_written_in_the_unit_that_shows_them(number: float, text: str) -> None:
    assert seconds(number) == text


def test_counts_and_shares_are_rounded() -> None:
    assert (count(30_532_122_624), count(512), count(4.1e16), percent(0.4128)) == ("30.53 B", "512", "41.00 P", "41.3%")


@pytest.mark.parametrize(
    ("numbers", "text"), [([], "-"), ([7], "7"), (range(4), "0-3"), ([0, 1, 5, 6, 7, 9], "0-1, 5-7, 9")]
)
def test_ascending_numbers_are_joined_to_ranges(numbers: list[int], text: str) -> None:
    assert span(numbers) == text


@pytest.mark.parametrize("width", [30, 57, 80, 300])
@pytest.mark.parametrize("used", [0.0, 0.3, 17.0, 40.0, 79.9, 80.0, 200.0])
def test_the_bar_fits_the_terminal_and_is_filled_in_proportion(width: int, used: float) -> None:
    parts = [MemoryPart("parameters", used * GIB / 4), MemoryPart("activations", used * GIB * 3 / 4)]
    bar = memory_bar(parts, 80 * GIB, width).plain
    assert len(bar) <= max(width, 40)
    inside = bar[1 : bar.index("]")]
    assert bar.endswith(f"] {used:.1f} of 80.0 GiB")
    filled = len(inside) - inside.count("·")
    assert filled == pytest.approx(len(inside) * min(used / 80, 1), abs=1)
    beyond = max(used - 80, 0) / max(used, 80)
    assert inside.count("!") == pytest.approx(len(inside) * beyond, abs=1)
    assert inside.lstrip("█").lstrip("▓").lstrip("!").strip("·") == ""  # runs in the order of the parts


def test_many_small_parts_fill_the_bar_as_much_as_one_large_one() -> None:
    small = [MemoryPart(str(number), 0.4 * GIB) for number in range(100)]
    bar = memory_bar(small, 80 * GIB, 80).plain
    inside = bar[1 : bar.index("]")]
    assert inside.count("·") == pytest.approx(len(inside) / 2, abs=1)
