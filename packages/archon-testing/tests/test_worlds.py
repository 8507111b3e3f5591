"""What a world gives, what it tells when a rank fails, and that it leaves nothing behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from archon_core.errors import ConfigError
from archon_testing import fork_server, running_world
from archon_testing.failures import WorldError
from archon_testing.functions import FunctionReference
from archon_testing.worlds import MOST_RANKS, run_world


@dataclass(frozen=True)
class Point:
    x: int


class Unpicklable:
    def __reduce__(self):
        raise pickle.PicklingError("it is a secret")


def check_in(folder):
    (Path(folder) / str(os.getpid())).touch()


def sum_of_ranks():
    value = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(value)
    return value.item()


def own_rank_and(value):
    return dist.get_rank(), value


def process_facts():
    return dist.is_initialized(), torch.get_num_threads(), os.environ.get("OF_THE_PARENT"), os.environ.get("RANK")


def moved(point):
    return Point(point.x + 1)


def whole_tensor():
    return torch.arange(3, dtype=torch.float64) + dist.get_rank()


def count_to(n):
    for number in range(n):
        dist.barrier()
        yield number


def count_and_wait():
    yield "the first"
    time.sleep(600)
    yield "never"


def raise_on(rank, folder):
    check_in(folder)
    if dist.get_rank() == rank:
        raise ValueError("the boom of a rank")
    dist.barrier()


def all_raise_later_than(rank):
    """Every rank fails by itself; ``rank`` first."""
    time.sleep(0 if dist.get_rank() == rank else 0.5)
    raise ValueError(f"rank {dist.get_rank()}")


def kill_itself(rank, folder):
    check_in(folder)
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(3))


def lose_connections_before_the_cause(rank):
    """``rank`` hides for a while why it left; the others are heard first."""
    if dist.get_rank() == rank:
        dist.destroy_process_group()
        time.sleep(0.5)
        raise ValueError("the cause")
    raise RuntimeError("Connection closed by peer [127.0.0.1]:1")


def exit_silently(rank):
    if dist.get_rank() == rank:
        print("last words")
        os._exit(3)
    dist.barrier()


def a_function_that_waits():
    time.sleep(600)


def hang_on(ranks, folder):
    check_in(folder)
    if dist.get_rank() in ranks:
        a_function_that_waits()


def return_unpicklable():
    return Unpicklable() if dist.get_rank() == 1 else None


def print_something():
    print(f"hello from {dist.get_rank()}")


def test_results_come_in_the_order_of_ranks():
    assert run_world(own_rank_and, 4, ("x",)) == [(rank, "x") for rank in range(4)]


@pytest.mark.parametrize("n_ranks", [2, MOST_RANKS])
def test_collectives_reach_all_ranks(n_ranks):
    assert run_world(sum_of_ranks, n_ranks) == [n_ranks * (n_ranks - 1) / 2] * n_ranks


def test_worlds_follow_one_another_without_touching():
    assert [run_world(sum_of_ranks, n_ranks) for n_ranks in (2, 3, 2, 4, 2)] == [
        [n * (n - 1) / 2] * n for n in (2, 3, 2, 4, 2)
    ]


def test_a_rank_has_one_thread_and_the_environment_of_now_without_a_launchers(monkeypatch):
    monkeypatch.setenv("OF_THE_PARENT", "seen")
    monkeypatch.setenv("RANK", "7")
    assert run_world(process_facts, 2) == [(True, 1, "seen", None)] * 2


def test_a_single_rank_has_no_process_group():
    [(initialised, threads, *_)] = run_world(process_facts, 1)
    assert (initialised, threads) == (False, 1)


def test_values_of_classes_in_the_test_file_travel_both_ways():
    assert run_world(moved, 2, (Point(1),)) == [Point(2), Point(2)]


def test_tensors_are_results():
    assert [result.tolist() for result in run_world(whole_tensor, 2)] == [[0, 1, 2], [1, 2, 3]]


def test_a_function_of_an_installed_module_is_imported():
    assert run_world(FunctionReference("os", "getpid"), 2) != [os.getpid()] * 2


def test_values_of_a_generator_arrive_while_it_runs():
    heard = []
    assert run_world(count_to, 2, (3,), on_value=lambda rank, value: heard.append((rank, value))) == [None, None]
    assert sorted(heard) == [(rank, number) for rank in range(2) for number in range(3)]
    assert [value for rank, value in heard if rank == 0] == [0, 1, 2]


def test_an_error_while_a_value_is_taken_ends_the_world():
    def refuse(rank, value):
        raise KeyError("not this one")

    with pytest.raises(KeyError, match="not this one"):
        run_world(count_and_wait, 2, on_value=refuse)


def test_the_error_of_one_rank_ends_the_others_and_is_shown(tmp_path, assert_gone):
    with pytest.raises(WorldError) as caught:
        run_world(raise_on, 4, (2, str(tmp_path)))
    assert caught.value.first.rank == 2
    message = str(caught.value)
    assert "rank 2 failed first: ValueError: the boom of a rank" in message
    assert 'raise ValueError("the boom of a rank")' in message
    assert "rank_process.py" not in message
    assert_gone(tmp_path)


def test_among_ranks_that_fail_by_themselves_the_earliest_is_named():
    with pytest.raises(WorldError) as caught:
        run_world(all_raise_later_than, 3, (1,))
    assert caught.value.first.rank == 1
    assert {failure.rank for failure in caught.value.failures} == {0, 1, 2}


def test_a_killed_rank_is_named_before_those_that_lost_it(tmp_path, assert_gone):
    with pytest.raises(WorldError) as caught:
        run_world(kill_itself, 4, (1, str(tmp_path)))
    first, *others = caught.value.failures
    assert (first.rank, first.cause) == (1, "signal")
    assert "SIGKILL" in first.summary
    assert all(failure.lost_connection for failure in others)
    assert_gone(tmp_path)


def test_a_lost_connection_is_blamed_last_even_when_it_is_heard_first():
    with pytest.raises(WorldError, match="rank 2 failed first: ValueError: the cause") as caught:
        run_world(lose_connections_before_the_cause, 3, (2,))
    assert [failure.lost_connection for failure in caught.value.failures] == [False, True, True]


def test_a_rank_that_exits_is_reported_with_its_code_and_last_output():
    with pytest.raises(WorldError, match="rank 0 failed first: exited with code 3") as caught:
        run_world(exit_silently, 2, (0,))
    assert "last words" in str(caught.value)


def test_hung_ranks_are_killed_and_their_stacks_shown(tmp_path, assert_gone):
    with pytest.raises(WorldError, match=r"no result within 2 s from ranks 0, 2") as caught:
        run_world(hang_on, 3, ((0, 2), str(tmp_path)), time_limit=2)
    assert [failure.rank for failure in caught.value.failures] == [0, 2]
    for failure in caught.value.failures:
        assert "in a_function_that_waits" in failure.details
        assert "in hang_on" in failure.details
        assert "rank_process.py" not in failure.details
    assert_gone(tmp_path)


def test_the_time_limit_begins_anew_with_every_value():
    heard = []
    with pytest.raises(WorldError, match="no result within 2 s"):
        run_world(count_and_wait, 1, time_limit=2, on_value=lambda rank, value: heard.append(value))
    assert heard == ["the first"]


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_rank():
    with pytest.raises(WorldError, match=r"rank 1 failed first: TypeError: found a result of type Unpicklable"):
        run_world(return_unpicklable, 2)


def test_what_ranks_print_is_shown_with_their_ranks(capsys):
    run_world(print_something, 2)
    assert capsys.readouterr().out.splitlines() == ["[rank 0] hello from 0", "[rank 1] hello from 1"]
    run_world(print_something, 2, show_output=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("n_ranks", [0, MOST_RANKS + 1, True, 2.0])
def test_a_number_of_ranks_that_no_world_has_is_refused(n_ranks):
    with pytest.raises(ConfigError, match="allowed are 1 to 8"):
        run_world(sum_of_ranks, n_ranks)


@pytest.mark.parametrize("time_limit", [0, -1.0, float("inf"), float("nan"), "60"])
def test_a_time_limit_that_never_comes_is_refused(time_limit):
    with pytest.raises(ConfigError, match="time_limit"):
        run_world(sum_of_ranks, 2, time_limit=time_limit)


def test_functions_that_ranks_cannot_load_are_refused():
    def local():
        return 1

    for function in (local, lambda: 1, Point(1)):
        with pytest.raises(ConfigError, match="at the top level of a module"):
            run_world(function, 2)


@pytest.mark.parametrize("name", sorted({*running_world.PRELOADED, *fork_server.PRELOADED}))
def test_modules_that_are_imported_once_for_all_ranks_exist(name):
    assert find_spec(name) is not None, "a forkserver skips modules that are missing"


def test_arguments_that_cannot_be_pickled_are_refused():
    with pytest.raises(ConfigError, match="it is a secret"):
        run_world(own_rank_and, 2, (Unpicklable(),))


PROGRAM = """
import os, sys, time
from pathlib import Path
from archon_testing import running_world
from archon_testing.worlds import run_world

running_world.PRELOADED = ("torch",)  # all that these ranks use

def wait(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    print("started", flush=True)
    run_world(wait, 3, (sys.argv[1],))
"""


@pytest.fixture
def program(tmp_path):
    """``program() -> Popen`` of a world that waits, in a process group of its own as in a terminal, and its folder."""
    file, ranks = tmp_path / "program.py", tmp_path / "ranks"
    ranks.mkdir()
    file.write_text(PROGRAM)
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
        "env": {**os.environ, "TMPDIR": str(tmp_path)},
    }
    with subprocess.Popen([sys.executable, str(file), str(ranks)], **options) as process:
        assert process.stdout.readline() == "started\n"
        yield process, ranks
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_nothing_is_left_when_the_parent_is_stopped(number, program, assert_gone):
    process, ranks = program
    while len(list(ranks.iterdir())) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.count("Traceback") == (number == signal.SIGINT)
    assert_gone(ranks)


def test_ctrl_c_while_torch_is_imported_gives_the_parents_traceback_only(program):
    process, _ = program
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1
