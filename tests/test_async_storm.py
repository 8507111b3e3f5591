"""The storm over asynchronous training: its schedule, a short one, and checks that name what is planted in its records.

``python tooling/async_storm.py --seeds 10`` makes longer ones.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_testing.fork_server import ForkServer
from async_weather.checker import check, lineage
from async_weather.options import CALM_STEPS, AsyncStormOptions, plan_kills
from async_weather.reading import Reader, end_torn_line

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs signals of dying parents, and /proc")


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(CALM_STEPS, 40), st.integers(0, 40))
def test_a_schedule_is_a_function_of_its_options(seed: int, steps: int, events: int) -> None:
    options = AsyncStormOptions(seed=seed, steps=steps, events=events)
    planned = plan_kills(options)
    assert planned == plan_kills(options)
    assert len(planned) == events
    assert all(kill.step <= steps - CALM_STEPS for kill in planned), "the end is calm"
    kinds = Counter(kill.kind for kill in planned)
    assert max(kinds.values(), default=0) - min((kinds[kind] for kind in options.kinds), default=0) <= 1


def test_a_line_that_a_killed_process_did_not_finish_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    reader = Reader(file)
    assert reader.fresh() == []
    file.write_text('{"n": 1}\n{"n": 2, "tor')
    assert reader.fresh() == [{"n": 1}]
    end_torn_line(file)
    end_torn_line(file)
    with file.open("a") as more:
        more.write('{"n": 3}\n')
    assert reader.fresh() == [{"n": 3}]


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint() -> None:
    """Steps 2 and 3 are repeated after the trainer's death; version 5 was published again as another one."""
    step = [{"kind": "step", "step": n, "run": 1} for n in range(4)]
    again = [{"kind": "step", "step": n, "run": 2} for n in range(2, 4)]
    published = [{"kind": "published", "step": n, "version": 2 * n} for n in (0, 1, 2, 3)]
    lines = [published[0], step[0], published[1], step[1], published[2], step[2], published[3], step[3]]
    lines += [{"kind": "published", "step": 2, "version": 4}, again[0]]
    steps, versions = lineage(lines)
    assert [(line["step"], line["run"]) for line in steps] == [(0, 1), (1, 1), (2, 2)]
    assert versions == {0: 0, 2: 1, 4: 2}


def make_storm(forks: ForkServer, folder: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "tooling/async_storm.py"), "--folder", str(folder), *options]
    output = folder.with_suffix(".txt")
    with output.open("wb") as file:
        storm = forks.popen(command, stdout=file, stderr=subprocess.STDOUT)
    assert storm.wait(900) == 0, output.read_text(encoding="utf-8")
    return output.read_text(encoding="utf-8")


@pytest.mark.wide
def test_training_survives_kills_of_everything(forks: ForkServer, tmp_path: Path) -> None:
    options = ("--seed", "3", "--servers", "2", "--dynamic-sampling")
    assert "survived" in make_storm(forks, tmp_path / "storm", "--events", "6", "--steps", "10", *options)


@pytest.mark.wide
def test_training_on_two_ranks_survives_kills_of_single_ranks(forks: ForkServer, tmp_path: Path) -> None:
    """The second rank is killed, too, while the first one has a collector."""
    few = ("--seed", "7", "--events", "3", "--steps", "6", "--servers", "1", "--staleness", "1")
    output = make_storm(forks, tmp_path / "storm", *few, "--ranks", "2", "--kinds", "rank", "collector")
    assert re.search(r"survived.* [1-9]\d* ranks after the first killed", output), output


@pytest.fixture(scope="module")
def storm(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short storm, in which a collector and a trainer were killed and all ended well."""
    folder = tmp_path_factory.mktemp("storm")
    options = ("--events", "2", "--steps", "5", "--servers", "1", "--kinds", "collector", "trainer")
    make_storm(forks, folder / "short", *options)
    return folder / "short" / "seed-0"


def test_a_short_storm_is_survived(storm: Path) -> None:
    report = check(storm)
    assert report.problems == ()
    assert report.counts["times trainer killed"] == report.counts["times collector killed"] == 1
    assert report.counts["records consumed"] >= 15
    assert report.counts["of them dropped"] > 0
    assert report.counts["tokens"] > 50


def swap_records(step: dict[str, Any]) -> None:
    step["groups"].reverse()


def relabel(step: dict[str, Any]) -> None:
    """Give the tokens of a group the version of step 0."""
    group = next(group for group in step["groups"] if group["trajectories"])
    for trajectory in group["trajectories"]:
        trajectory[3] = [min(version, 0) for version in trajectory[3]]


def edited(storm: Path, folder: Path, file: str, wanted: Callable[[Any], bool], change: Callable[[Any], Any]) -> Path:
    """A copy of the records with changes to all wanted lines."""
    planted = folder / f"planted-{len(list(folder.iterdir()))}"
    shutil.copytree(storm, planted)
    lines = [json.loads(line) for line in (planted / file).read_text().splitlines()]
    for line in filter(wanted, lines):
        change(line)
    (planted / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return planted


def test_every_planted_fault_is_named(storm: Path, tmp_path: Path) -> None:
    def last_step(line: Any) -> bool:
        return line["kind"] == "step" and line["step"] == 4

    def ended(line: Any) -> bool:
        return line["kind"] == "ended"

    def killed(line: Any) -> bool:
        return line["kind"] == "killed"

    faults = [
        ("trainer.jsonl", last_step, swap_records, "records were not consumed once each"),
        ("trainer.jsonl", last_step, lambda line: line.update(stale_prompts=1), "step 4: 1 groups were too stale"),
        ("trainer.jsonl", last_step, lambda line: line.update(step=5), "found the steps [0, 1, 2, 3, 5]"),
        ("trainer.jsonl", last_step, relabel, "a token is older than 2 steps"),
        ("sky.jsonl", ended, lambda line: line.update(processes=["7: python"]), "start 1 left a process behind: 7"),
        ("sky.jsonl", ended, lambda line: line.update(segments=["archon-x"]), "a segment was left behind in /dev/shm"),
        ("sky.jsonl", ended, lambda line: line.update(code=None), "start 1 hung"),
        ("sky.jsonl", lambda line: line["kind"] == "end", lambda line: line.update(finished=False), "did not finish"),
        (
            "sky.jsonl",
            lambda line: line["kind"] == "killed",
            lambda line: line.update(kind="spared"),
            "ended with code",
        ),
    ]
    for file, wanted, change, expected in faults:
        found = check(edited(storm, tmp_path, file, wanted, change)).problems
        assert any(expected in problem for problem in found), (expected, found)


def test_a_token_with_a_wrong_label_and_other_weights_are_named(storm: Path, tmp_path: Path) -> None:
    def mislabel(line: Any) -> None:
        group = next(group for group in line["groups"] if group["trajectories"])
        group["trajectories"][0][2] = [value - 1e-3 for value in group["trajectories"][0][2]]

    planted = edited(storm, tmp_path, "trainer.jsonl", lambda line: line["kind"] == "step", mislabel)
    assert "is labelled" in check(planted).problems[0]
    from safetensors.torch import load_file, save_file

    export = planted / "storm/run/export/model.safetensors"
    weights = load_file(export)
    save_file({name: tensor + 1e-6 for name, tensor in weights.items()}, export)
    assert any("from the run without kills" in problem for problem in check(storm, planted).problems)
