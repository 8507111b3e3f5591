"""``archon plan --search``: what it asks for, and that its answers are those of a plan of the layouts that it finds."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archon_core.cli.main import main
from archon_core.plugins import registry
from archon_plan.answer import Refused
from archon_plan.constraints import check_engine
from archon_plan.devices import find_device
from archon_plan.engine_flags import EngineFlags, request_engine
from archon_plan.engine_plan import plan_engine
from archon_plan.layouts import write_layout
from archon_plan.request import RunRequest, request_run
from archon_plan.results import StepTime
from archon_plan.search import Candidate
from archon_plan.search_request import SearchAnswer, find_layouts, options_of, request_candidate
from archon_plan.search_space import SearchSpace
from archon_plan.timing import step_time

ROOT = Path(__file__).parents[2]
AREAL = ROOT / "examples" / "archon_qwen3_moe.yaml"


def run(*arguments: str) -> int:
    """The exit code of ``archon plan``."""
    with pytest.raises(SystemExit) as exit:
        main(["plan", *arguments])
    return int(exit.value.code or 0)


def searched(world: int, **flags: Any) -> SearchAnswer:
    return found_for(request_engine(EngineFlags(**{"model": "qwen3-8b", "layout": "archon:d1", **flags})), world)


def found_for(request: RunRequest, world: int) -> SearchAnswer:
    found = find_layouts(request, find_device("h100"), registry(), world=world)
    assert isinstance(found, SearchAnswer)
    return found


@pytest.fixture(scope="module")
def experts() -> SearchAnswer:
    return searched(16, model="qwen3-30b-a3b", seq=2048, tokens=8192)


@pytest.fixture(scope="module")
def padded() -> SearchAnswer:
    """Of a strict engine, with pairs of sequences in micro-batches of multiples of 64 tokens."""
    request = request_engine(EngineFlags(model="qwen3-0.6b", layout="archon:d1", seq=1000, tokens=5000))
    (engine,) = request.engines
    config = replace(
        engine.config,
        batch_align_to=64,
        mb_spec=replace(engine.config.mb_spec, granularity=2, n_mbs_divisor=3),
        archon=replace(engine.config.archon, strict=True),
    )
    return found_for(replace(request, engines=(replace(engine, config=config),)), 8)


@pytest.mark.parametrize("name", ["experts", "padded"])
def test_a_layout_that_is_found_has_the_time_and_memory_of_its_plan(name: str, request: pytest.FixtureRequest) -> None:
    answer: SearchAnswer = request.getfixturevalue(name)
    assert len(answer.result.candidates) == 5
    for candidate in answer.result.candidates:
        engine = request_candidate(answer, candidate)
        check = check_engine(engine, registry())
        assert check.violations == ()
        setting = plan_engine(engine, check).setting
        assert setting == candidate.setting
        assert setting.dims.world_size == answer.world
        assert step_time(setting, find_device("h100")).total == pytest.approx(candidate.time.total, rel=1e-9)
        assert max(memory.total for memory in candidate.memory) <= find_device("h100").memory


def test_options_of_a_candidate_are_those_that_a_strict_engine_accepts(padded: SearchAnswer) -> None:
    # Of every schedule, with the numbers of micro-batches that it allows.
    space, names = SearchSpace(padded.sought), set()
    for dims in (dims for dims in space.layouts(8) if (dims.pp, dims.cp) == (4, 1)):
        for option in space.options(dims):
            setting = space.with_actions(space.setting(dims, option, "full"))
            layout = write_layout(dims, moe=False)
            names.add(setting.schedule.name)
            engine = request_candidate(padded, Candidate(layout, setting, StepTime(0.0), 0.0))
            check = check_engine(engine, registry())
            assert check.violations == ()
            assert plan_engine(engine, check).setting == setting
            written = options_of(padded.request, setting)
            assert (written.get("archon.enable_compile") == "false") == setting.schedule.splits_backward
            assert int(written.get("mb_spec.n_mbs_divisor", 3)) == engine.config.mb_spec.n_mbs_divisor
    assert {"1F1B", "InterleavedZeroBubble", "ZBVZeroBubble"} < names


def test_all_layouts_process_the_same_sequences(experts: SearchAnswer) -> None:
    assert experts.sought.sequences == 16 * 8192 // 2048
    for candidate in experts.result.candidates:
        setting = candidate.setting
        ranks = setting.dims.dp_shard * setting.dims.dp_replicate
        room = ranks * setting.tokens.n_micro_batches * setting.tokens.per_micro_batch // 2048
        assert room >= experts.sought.sequences
        assert candidate.tokens_per_second == pytest.approx(64 * 2048 / candidate.time.total)


def test_a_written_mode_or_schedule_is_kept() -> None:
    found = searched(8, ac_mode="full", schedule="1F1B", seq=4096)
    assert {candidate.setting.checkpointing for candidate in found.result.candidates} == {"full"}
    assert found.sought.schedules == ("1F1B",)


@pytest.mark.parametrize(("backend", "axes"), [("archon", "rdtpc"), ("fsdp", "rdtc")])
def test_the_engine_of_the_layout_and_the_model_limit_the_axes(backend: str, axes: str) -> None:
    request = request_engine(EngineFlags(model="qwen3-0.6b", layout=f"{backend}:d1"))
    found = find_layouts(request, find_device("h100"), registry(), world=2)
    assert isinstance(found, SearchAnswer)
    assert set(found.sought.axes) == set(axes)  # a dense model has no experts
    assert all(candidate.layout.startswith(f"{backend}:") for candidate in found.result.candidates)


@pytest.mark.wide
def test_a_file_is_searched_with_the_sequences_of_its_steps() -> None:
    request = request_run(AREAL, ("data.batch_size=32",), registry())
    found = find_layouts(request, find_device("h100"), registry(), world=8, best=1)
    assert isinstance(found, SearchAnswer)
    assert found.sought.sequences == 32 * 4
    assert found.sought.most_tokens == 10240


def test_options_that_no_layout_allows_are_violations() -> None:
    request = request_engine(EngineFlags(model="qwen3-0.6b", layout="archon:d8", dtype="fp8"))
    found = find_layouts(request, find_device("h100"), registry(), world=8)
    assert isinstance(found, Refused)
    assert found.engines[0].violations[0].option == "actor.dtype"


def test_the_command_prints_what_plans_the_best_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = (
        "--model",
        "qwen3-0.6b",
        "--world",
        "4",
        "--search",
        "--seq",
        "1024",
        "--optimizer",
        "muon",
        "--no-compile",
    )
    assert run(*asked, "--html", str(page)) == 0
    out = capsys.readouterr().out
    assert "the least number of devices on which a layout fits: 1" in out
    command = next(line for line in out.splitlines() if line.startswith("to plan the first: "))
    words = shlex.split(command.removeprefix("to plan the first: "))
    assert "the best layouts of qwen3-0.6b" in page.read_text()
    assert words[:2] == ["archon", "plan"]
    assert run(*words[2:], "--json") == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert run(*asked, "--json") == 0
    best = json.loads(capsys.readouterr().out)["candidates"][0]
    assert engine["layout"] == best["layout"]
    assert engine["time"]["total"] == pytest.approx(best["time"]["total"], rel=1e-9)
    assert engine["peak_bytes"] == pytest.approx(best["memory_bytes"], rel=1e-9)


def test_what_fits_nowhere_exits_with_1_and_says_from_where_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "qwen3-8b", "--world", "1", "--search", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"] == []
    assert found["least_devices"] > 1
