"""The pages of docs/ that are made from the code."""

import re
from pathlib import Path

import pytest

from docs import BEGIN, END, with_tables
from generated.performance import render_performance
from generated.plans import SHOWN
from generated.tables import table
from verified import summary

ROOT = Path(__file__).parents[1]


def test_every_table_that_is_marked_as_made_is_made() -> None:
    tool = (ROOT / "tooling/docs.py").read_text(encoding="utf-8")
    measured = render_performance(ROOT)
    for page in (ROOT / "docs").rglob("*.md"):
        for source in re.findall(r"<!-- made from (.+) by tooling/docs.py -->", page.read_text(encoding="utf-8")):
            made = f'"{source}": ' in tool or source in SHOWN or source in measured
            assert made, f"{page.name}: {source} is not among the tables of tooling/docs.py"


def test_a_table_takes_its_place_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN.format(source='x')}old\n{END}after\n")
    assert with_tables(page, {"x": "new\n"}) == f"before\n{BEGIN.format(source='x')}new\n{END}after\n"


def test_a_page_without_its_mark_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"docs/index.md: found 0 times, allowed once: <!-- made from y"):
        with_tables(ROOT / "docs/index.md", {"y": ""})


def test_cells_keep_to_their_row() -> None:
    assert table(["a", "b"], [["x\ny", "p|q"]]) == "| a | b |\n| --- | --- |\n| x y | p\\|q |\n"


def test_a_recorded_verification_keeps_its_largest_error_in_the_finest_dtype() -> None:
    def case(dtype, **errors):
        found = {name: {"error": error, "name": "x", "step": 1} for name, error in errors.items()}
        return {"dtype": dtype, "errors": {**found, "export": None}}

    report = {
        "versions": {"torch": "2.13.0+cpu"},
        "layouts": [
            {"cases": [case("float64", loss=2e-15, gradients=3.4e-13), case("float32", gradients=1e-6)]},
            {"cases": [case("float64", weights=8e-13), case("bfloat16", gradients=0.1)]},
        ],
    }
    found = summary(report, 4)
    assert found == {"world": 4, "layouts": 2, "cases": 4, "dtype": "float64", "error": 8e-13, "torch": "2.13.0"}
