"""The storm: its schedule, one short storm that is survived, and checks that name every fault planted in its records.

``hatch run storm`` makes longer ones. The schedule is a pure function, so it is tested without processes.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_testing.fork_server import ForkServer
from weather.checker import check
from weather.events import COMMON_FAULTS, KINDS, plan_storm
from weather.options import CALM_VERSIONS, StormOptions
from weather.oracle import TokenReport, check_tokens_and_training
from weather.records import Line, Records, of_kind

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs signals of dying parents, and /proc")


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(0, 108))
def test_a_schedule_is_a_function_of_its_options(seed: int, versions: int, events: int) -> None:
    options = StormOptions(seed=seed, versions=versions, events=events)
    if options.problem():
        assert events > (versions - CALM_VERSIONS) * options.servers
        return
    planned = plan_storm(options)
    assert planned == plan_storm(options)
    assert sorted(event.number for event in planned) == list(range(events))
    assert all(0 <= event.version < versions - CALM_VERSIONS for event in planned), "the end is calm"
    struck = Counter((event.version, event.slot) for event in planned if event.kind not in COMMON_FAULTS)
    assert max(struck.values(), default=1) == 1, "a server has one fault per version"
    kinds = Counter(event.kind for event in planned)
    assert max(kinds.values(), default=0) - min((kinds[kind] for kind in KINDS), default=0) <= 1


def test_storms_differ_by_their_seeds_and_100_events_have_every_kind() -> None:
    first, second = (plan_storm(StormOptions(seed=seed)) for seed in (0, 1))
    assert first != second
    assert {event.kind for event in first} == set(KINDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"versions": 2}, "--versions: found 2"), ({"events": 113}, "--events: found 113; allowed are 0 to 112")],
)
def test_a_storm_that_cannot_be_is_refused(change: dict[str, int], message: str) -> None:
    assert message in StormOptions(**change).problem()


def make_storm(forks: ForkServer, folder: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "tooling/storm.py"), "--folder", str(folder), *options]
    output = folder.with_suffix(".txt")
    with output.open("wb") as file:
        storm = forks.popen(command, stdout=file, stderr=subprocess.STDOUT)
    assert storm.wait(600) == 0, output.read_text(encoding="utf-8")
    return output.read_text(encoding="utf-8")


@pytest.mark.wide
def test_training_survives_25_faults(forks: ForkServer, tmp_path: Path) -> None:
    options = ("--seed", "7", "--events", "25", "--versions", "10", "--transport", "distributed")
    assert "seed 7: survived" in make_storm(forks, tmp_path / "storm", *options)


@pytest.fixture(scope="module")
def records(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The records of a short storm, in which a server was killed and all ended well."""
    folder = tmp_path_factory.mktemp("storm")
    make_storm(forks, folder / "short", "--seed", "0", "--events", "8", "--versions", "4")
    return Records.read(folder / "short" / "seed-0")


def edited(lines: tuple[Line, ...], wanted: Callable[[Line], bool], **changes: Any) -> tuple[Line, ...]:
    """The lines with changes to the first wanted one, which must exist."""
    place = next(number for number, line in enumerate(lines) if wanted(line))
    return (*lines[:place], {**lines[place], **changes}, *lines[place + 1 :])


def survivor(records: Records) -> tuple[str, str]:
    """Name and incarnation of a server that lived to the end."""
    state = of_kind(records.sky, "state")[0]
    return state["name"], state["incarnation"]


def with_server_log(records: Records, incarnation: str, lines: tuple[Line, ...]) -> Records:
    return replace(records, servers={**records.servers, incarnation: lines})


def problems_of_tokens(records: Records) -> list[str]:
    [storm] = of_kind(records.sky, "storm")
    return check_tokens_and_training(records, StormOptions(**storm["options"])).problems


def test_a_short_storm_is_survived_and_every_event_is_accounted_for(records: Records) -> None:
    report = check(records)
    assert report.problems == ()
    assert report.counts["tokens consumed"] > 200
    assert report.counts["of 8 events struck"] >= 5


def test_a_wrong_label_in_a_servers_log_or_in_a_batch_is_named(records: Records) -> None:
    incarnation, wanted = next(
        (incarnation, line)
        for incarnation, lines in records.servers.items()
        for line in of_kind(lines, "tokens")
        if not line["lying"] and line["versions"].count(1) >= 8
    )
    labels = [2 if version == 1 else version for version in wanted["versions"]]
    lines = edited(records.servers[incarnation], lambda line: line is wanted, versions=labels)
    planted = with_server_log(records, incarnation, lines)
    [problem] = problems_of_tokens(planted)
    assert problem.startswith(f"server {incarnation[:8]}: token ")
    assert "is labelled 2 and has log-probability" in problem

    trainer, other = records.trainers
    [batch] = [line for line in of_kind(trainer, "batch") if line["version"] == 1]
    rows = [{**batch["rows"][0], "versions": [0] * len(batch["rows"][0]["versions"])}, *batch["rows"][1:]]
    planted = replace(records, trainers=(edited(trainer, lambda line: line is batch, rows=rows), other))
    found = problems_of_tokens(planted)
    assert "step 1: found tokens of versions [0, 1]" in found
    assert any(problem.startswith("step 1, completion 0: token 0 is labelled 0") for problem in found)
    assert any(problem == "step 1: rank 1 has another batch than rank 0" for problem in check(planted).problems)


def test_weights_of_another_training_or_of_no_version_are_named(records: Records) -> None:
    trainer, other = records.trainers
    [batch] = [line for line in of_kind(trainer, "batch") if line["version"] == 2]
    rows = [{**batch["rows"][0], "advantage": batch["rows"][0]["advantage"] + 1e-4}, *batch["rows"][1:]]
    planted = replace(records, trainers=(edited(trainer, lambda line: line is batch, rows=rows), other))
    assert [problem for problem in problems_of_tokens(planted) if "weights of version 3" in problem]
    incarnation, lines = next((i, lines) for i, lines in records.servers.items() if of_kind(lines, "committed"))
    changed = edited(lines, lambda line: line["kind"] == "committed", digest="0" * 64)
    [problem] = problems_of_tokens(with_server_log(records, incarnation, changed))
    assert problem.startswith(f"server {incarnation[:8]} switched to weights that are not those of version")


def plants(records: Records) -> Iterator[tuple[Records, str]]:
    """Records with one fault each, and the start of the problem that must be named."""
    name, incarnation = survivor(records)
    own = records.servers[incarnation]
    yield with_server_log(records, incarnation, (*own, {"kind": "paused"})), f"server {name} was left paused: its log"
    sky = records.sky
    paused = edited(sky, lambda line: line["kind"] == "state", paused=True)
    yield replace(records, sky=paused), f"server {name} was left paused: it says so"
    silent = edited(sky, lambda line: line["kind"] == "state", answers=False)
    yield replace(records, sky=silent), f"server {name} did not answer at the end"
    segment = edited(sky, lambda line: line["kind"] == "end", segments=["archon-weights-0-run-1"])
    yield replace(records, sky=segment), "a segment was left behind in /dev/shm: archon-weights-0-run-1"
    process = edited(sky, lambda line: line["kind"] == "end", processes=["4711: python storm.py"])
    yield replace(records, sky=process), "a process was left behind: 4711: python storm.py"
    yield replace(records, sky=tuple(line for line in sky if line["kind"] != "end")), "the storm has no end"
    hung = edited(sky, lambda line: line["kind"] == "servers", hanging=[name])
    yield replace(records, sky=hung), f"server {name} hung and was killed"
    failed = edited(sky, lambda line: line["kind"] == "ranks", failed={"1": -9})
    yield replace(records, sky=failed), "rank 1 ended with code -9"
    first, second = records.trainers
    slow = edited(first, lambda line: line["kind"] == "step", sampling=10_000.0)
    yield replace(records, trainers=(slow, second)), "rank 0: step 0 took 1000"
    short = tuple(line for line in second if line["kind"] != "step" or line["version"])
    yield replace(records, trainers=(first, short)), "rank 1 finished 3 of 4 steps"
    yield replace(records, trainers=(first,)), "found records of 1 ranks, expected 2"
    differing = edited(second, lambda line: line["kind"] == "decision", members=[])
    yield replace(records, trainers=(first, differing)), "step 0: rank 1 has another decision than rank 0"
    decision = of_kind(first, "decision")[-1]
    member = decision["members"][0]
    lines = records.servers[member]
    last = [line for line in of_kind(lines, "committed") if line["at"] <= decision["at"]][-1]
    lying = edited(lines, lambda line: line is last, lying=True)
    yield with_server_log(records, member, lying), f"server {member[:8]} was in service at version 3; its log says"
    crashed = (*sky, {"kind": "died", "name": name, "code": 1, "reason": "ValueError: x"})
    yield replace(records, sky=crashed), f"server {name} ended with code 1: ValueError: x"
    late = (*first, {"kind": "lost", "seconds": 10_000.0})
    yield replace(records, trainers=(late, second)), "a request took 10000.0 s"


def test_what_hangs_stays_paused_or_is_left_behind_is_named(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tokens and training are computed again in other tests.
    monkeypatch.setattr("weather.checker.check_tokens_and_training", lambda *_: TokenReport())
    assert check(records).problems == ()
    for planted, expected in plants(records):
        found = check(planted).problems
        assert [problem for problem in found if problem.startswith(expected)], (expected, found)
    nothing_struck = tuple(line for line in records.sky if line["kind"] != "struck")
    logs = {name: tuple(li for li in lines if li["kind"] != "struck") for name, lines in records.servers.items()}
    assert any(
        problem.startswith("only ") and "events struck" in problem
        for problem in check(replace(records, sky=nothing_struck, servers=logs)).problems
    )
