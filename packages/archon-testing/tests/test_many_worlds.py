"""Worlds beside each other: what runs at once, what is heard of each, and what is left when one ends all."""

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from archon_testing.worlds import World, WorldError, run_worlds


def mark(folder, name, seconds=0.3):
    """Leave a file with the process's id, and note when this ran."""
    Path(folder, str(os.getpid())).touch()
    started = time.time()
    time.sleep(seconds)
    return name, started, time.time()


def fail(folder, name):
    raise ValueError(name)


def yield_name(name):
    yield name


def test_results_come_with_the_place_of_their_world_and_failures_end_no_other(tmp_path):
    worlds = [
        World(mark, 1, (tmp_path, "slow", 0.8)),
        World(fail, 1, (tmp_path, "wrong"), show_output=False),
        World(mark, 2, (tmp_path, "quick", 0.0)),
    ]
    outcomes = dict(run_worlds(worlds))
    assert [result[0] for result in outcomes[0]] == ["slow"]
    assert [result[0] for result in outcomes[2]] == ["quick", "quick"]
    assert isinstance(outcomes[1], WorldError)
    assert "ValueError: wrong" in str(outcomes[1])


def test_no_more_ranks_run_than_allowed_and_small_worlds_fill_the_gaps(tmp_path):
    sizes = (2, 2, 1, 4)
    worlds = [World(mark, size, (tmp_path, size)) for size in sizes]
    spans = []
    for place, results in run_worlds(worlds, ranks_at_once=3):
        _, started, ended = results[0]
        spans.append((place, sizes[place], started, ended))
    for _, _, started, ended in spans:
        middle = (started + ended) / 2
        running = [size for _, size, start, end in spans if start <= middle <= end]
        # One that is larger than the limit runs alone.
        assert sum(running) <= 3 or running == [4]
    starts = {place: started for place, _, started, _ in spans}
    assert starts[2] < starts[1], "the world of one rank did not wait for the one that was before it"


def test_values_go_to_their_own_worlds_listener():
    heard = {"a": [], "b": []}
    worlds = [
        World(yield_name, 2, (name,), on_value=lambda rank, value, name=name: heard[name].append((rank, value)))
        for name in heard
    ]
    assert sorted(place for place, _ in run_worlds(worlds)) == [0, 1]
    assert {name: sorted(values) for name, values in heard.items()} == {name: [(0, name), (1, name)] for name in heard}


def test_leaving_early_ends_every_world(tmp_path, assert_gone):
    worlds = [World(mark, 1, (tmp_path, "quick", 0.5)), World(mark, 2, (tmp_path, "endless", 600.0))]
    with closing(run_worlds(worlds)) as ended:
        assert next(ended)[0] == 0
    assert_gone(tmp_path)


def test_what_a_listener_raises_ends_every_world(tmp_path, assert_gone):
    def refuse(rank, value):
        assert_started()
        raise KeyError(value)

    def assert_started():
        ends = time.monotonic() + 20
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < ends:
            time.sleep(0.05)

    worlds = [World(mark, 2, (tmp_path, "endless", 600.0)), World(yield_name, 1, ("x",), on_value=refuse)]
    with pytest.raises(KeyError, match="x"):
        list(run_worlds(worlds))
    assert_gone(tmp_path)
