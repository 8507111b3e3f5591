"""The HTML page: complete, self-contained and well-formed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from archon_core import registry
from archon_plan.answer import Answer, find_answer
from archon_plan.devices import find_device
from archon_plan.engine_flags import EngineFlags, request_engine
from archon_plan.page import Found, render_page, write_page
from archon_plan.planned_run import PlannedRun, plan_run
from archon_plan.request import request_run

ROOT = Path(__file__).parents[2]


class Reader(HTMLParser):
    """Collects texts and attributes, and checks that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def planned() -> tuple[Answer, PlannedRun]:
    request = request_run(ROOT / "examples/archon_qwen3_moe.yaml", [], registry())
    answer = find_answer(request, find_device("h100"), registry())
    assert isinstance(answer, Answer)
    return answer, plan_run(answer, registry())


@pytest.fixture(scope="module")
def html(planned: tuple[Answer, PlannedRun]) -> str:
    answer, run = planned
    found = Found("Best layouts of 32 x h100", ("layout", "step"), [("archon:d32", "1 s"), ("archon:d16t2", "2 s")])
    return render_page(
        answer, rl=run.plan, splits=run.splits, sampling=run.memory, found=found, notes=("a <b>note</b>",)
    )


def test_the_page_is_well_formed_and_loads_nothing(html: str) -> None:
    page = Reader(html)
    assert html.startswith("<!doctype html>")
    assert not [one for one in page.attributes if one[1] in ("src", "href", "srcset", "action")]
    assert not re.search(r"url\(|@import|<script|<link|https?://(?!www\.w3\.org)", html.replace("arxiv.org", ""))
    assert ("meta", "name", "viewport") in page.attributes


def test_the_page_follows_light_and_dark(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    # Text and background are variables everywhere, so both change together.
    style = html[html.index("<style>") : html.index("</style>")]
    rules = style[style.index("* { box-sizing") :]
    assert not re.search(r"#[0-9a-f]{3,6}\b", rules)


def test_every_part_is_on_the_page(html: str, planned: tuple[Answer, PlannedRun]) -> None:
    answer, run = planned
    text = Reader(html).text
    [engine] = answer.engines
    for part in engine.fullest.parts:
        assert part.name in text
    sent = dict.fromkeys(range(4), 0.0)
    for transfer in engine.transfers:
        sent[transfer.pipeline_rank] += transfer.bytes
    most = max(sent, key=sent.__getitem__)
    for transfer in engine.transfers:
        assert transfer.pipeline_rank != most or transfer.purpose in text
    for name, value in engine.time.parts.items():
        assert name in text or value < engine.time.total / 200, "parts that are too short to see are one"
    assert run.plan is not None
    assert run.memory is not None
    assert "KV cache" in [part.name for part in run.memory.parts]
    for name in (*run.plan.training, *(part.name for part in run.memory.parts)):
        assert name in text
    for heading in ("Memory", "Time", "Traffic", "Pipeline", "The run", "Best layouts of 32 x h100", "Assumptions"):
        assert heading in text
    assert "archon:d16t2" in text
    assert "a <b>note</b>" in text
    assert "a <b>note" not in html


def test_the_memory_bars_are_to_scale(html: str, planned: tuple[Answer, PlannedRun]) -> None:
    answer, _ = planned
    [engine] = answer.engines
    memory = html[html.index("<h3>Memory</h3>") : html.index("<h3>Time</h3>")]
    tracks = re.findall(r'<div class="track">(.*?)</div>', memory)
    assert len(tracks) == engine.plan.setting.dims.pp
    longest = max(answer.device.memory, *(one.total for one in engine.memory))
    for track, one in zip(tracks, engine.memory, strict=True):
        widths = [float(width) for width in re.findall(r'<i style="width:([0-9.]+)%', track)]
        assert sum(widths) == pytest.approx(100 * one.total / longest, abs=0.02)


def test_the_timeline_of_a_run_follows_its_steps(html: str, planned: tuple[Answer, PlannedRun]) -> None:
    plan = planned[1].plan
    assert plan is not None
    steps = plan.timeline(6)
    lane = html[html.index('aria-label="trainer"') :]
    lane = lane[: lane.index("</svg>")]
    starts = [float(x) for x in re.findall(r'<rect x="([0-9.]+)"', lane)]
    assert starts == pytest.approx([1000 * step.taken / steps[-1].published for step in steps], abs=0.01)


def test_a_single_engine_has_a_page_without_a_run(tmp_path: Path) -> None:
    request = request_engine(EngineFlags(model="qwen3-8b", layout="archon:d2"))
    answer = find_answer(request, find_device("h100"), registry())
    assert isinstance(answer, Answer)
    file = tmp_path / "plan.html"
    write_page(file, answer)
    text = Reader(file.read_text(encoding="utf-8")).text
    assert "Pipeline" not in text
    assert "The run" not in text
    assert ("Fits: " if answer.fits else "Does not fit: ") in text
