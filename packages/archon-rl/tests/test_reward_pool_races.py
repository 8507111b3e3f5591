"""In any order of events, every call gets its own answer, only the guilty one is blamed, and no process is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from simulated_processes import World

from archon_core.errors import ConfigError, RewardError
from archon_rl.rewards import pool as pool_module
from archon_rl.rewards import process_group, reward_process
from archon_rl.rewards.calls import RewardCall
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.process_group import ProcessGroup
from archon_rl.rewards.source import RewardSource

SOURCE = RewardSource("mine", "my_reward:score")


@pytest.fixture
def simulated(monkeypatch):
    """Makes a pool of simulated processes for a seed."""
    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.0)

    def make(seed: int, processes: int = 3, timeout: float = 20.0) -> tuple[RewardPool, World]:
        world = World(seed)
        monkeypatch.setattr(reward_process, "ProcessGroup", world.start)
        return RewardPool(SOURCE, processes=processes, timeout=timeout, clock=world.clock), world

    return make


def calls(*completions: str, first: int = 0) -> list[RewardCall]:
    return [
        RewardCall("p", text, {"place": f"f:{number}"}, f"f:{number}") for number, text in enumerate(completions, first)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_seeded_events_give_every_call_its_own_answer(simulated, seed):
    pool, world = simulated(seed)
    draw = world.random
    n_events = 0
    for batch in range(6):
        texts = draw.choices(("good", "hang", "end", "end after"), (20, 1, 1, 1), k=draw.randrange(60))
        n_events += sum(text != "good" for text in texts)
        world.n_starts_that_fail = draw.randrange(3) if batch else 0
        if batch:
            for group in world.groups:
                if draw.random() < 0.2:
                    group.end(-9)  # between batches
        first = 100 * batch
        outcomes = pool.score(calls(*texts, first=first))
        for number, (text, outcome) in enumerate(zip(texts, outcomes, strict=True), first):
            how = {"hang": "it gave no answer within 20 s", "end": "it ended its process with exit code 3"}.get(text)
            if how is None:
                assert outcome.value == number
            else:
                assert outcome.error.startswith(f"f:{number}: reward 'mine': {how}")
                assert world.n_called[f"f:{number}"] == 1, "a call that ends its process is not repeated"
    pool.close()
    assert n_events > 5
    assert all(group.has_ended for group in world.groups)


def test_an_answer_that_comes_with_the_deadline_counts(simulated):
    pool, world = simulated(0, processes=1, timeout=1.0)
    [before] = pool.score(calls("good"))
    late = 0
    for number in range(1, 40):
        process = pool._processes[0]
        world.random.randrange = lambda n: 0  # nothing moves until the trainer wakes
        process.take([0], [pool._pickled(pool_module._Batch(calls("good", first=number)), 0)])
        batch = pool_module._Batch(calls("good", first=number))
        batch.waiting.clear()
        world.now += 5.0  # the trainer was stopped, and its process went on
        for _ in range(12):
            world.groups[-1].step()
        pool._listen(batch)
        late += not batch.outcomes[0].failed
    assert (before.value, late, len(world.groups)) == (0.0, 39, 1)


def test_a_process_that_reports_an_error_and_ends_is_not_called_dead(simulated):
    pool, world = simulated(0, processes=1)
    pool._start_processes(1)
    [group] = world.groups
    group._reply({"error": "ConfigError", "text": "no module"})
    group.end(0)
    with pytest.raises(ConfigError, match="no module"):
        pool.start()


def test_processes_that_end_before_they_call_anything_end_the_run(simulated):
    pool, world = simulated(1)
    pool.start()
    world.n_starts_that_fail = 10**6
    world.random.random = lambda: 0.0
    for group in world.groups:
        group.end(-9)
    with pytest.raises(
        RewardError, match=r"9 processes in a row ended without having called it; the last: it ended .*1"
    ):
        pool.score(calls("good"))
    assert all(group.has_ended for group in world.groups)


def test_a_process_with_another_source_ends_the_run(simulated):
    pool, world = simulated(1, processes=1)
    pool.start()
    world.groups[0].end(-9)
    pool._look_at_all(pool_module._Batch(()))
    pool._start_processes(1)
    world.groups[1]._ready = True
    world.groups[1]._reply({"fingerprint": {"digest": "other", "about": "reward"}})
    with pytest.raises(
        ConfigError, match=r"found reward \(sha256 other\) in a new reward process, and reward \(sha256 d\)"
    ):
        pool.score(calls("good"))


@pytest.mark.parametrize("when", ["_hand_out", "_look_at_all", "_start_processes"])
def test_an_interrupt_at_any_time_leaves_no_process(simulated, monkeypatch, when):
    pool, world = simulated(2)
    seen = []
    original = getattr(pool, when)

    def interrupted(*arguments):
        result = original(*arguments)
        seen.append(when)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(pool, when, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.score(calls(*["good"] * 200))
    assert all(group.has_ended for group in world.groups)
    assert [outcome.value for outcome in pool.score(calls("good", "good"))] == [0.0, 1.0]
    pool.close()


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_a_group_is_killed_before_its_leader_is_reaped(monkeypatch):
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    reading, writing = os.pipe()
    group = ProcessGroup(
        [sys.executable, "-c", f"import os; os.dup2({writing}, 1); {script}"],
        held=(),
        descriptors=[writing],
        environment=os.environ,
    )
    os.close(writing)
    with os.fdopen(reading) as output:
        child = int(output.readline())
    assert group.wait(30)
    leader, states = group._leader.pid, []
    monkeypatch.setattr(
        process_group.os,
        "killpg",
        lambda pid, number, kill=os.killpg: (states.append(state_of(pid)), kill(pid, number)),
    )
    assert (state_of(leader), group.has_ended) == ("Z", True)
    assert group.kill() == 0
    assert (states, state_of(leader)) == (["Z"], "gone")
    assert group.kill() == 0
    assert states == ["Z"], "the id may belong to another process now"
    deadline = time.monotonic() + 30
    while state_of(child) not in ("gone", "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cluster_s_signal_during_the_start_of_python_does_not_end_a_process():
    group = ProcessGroup(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        held=(signal.SIGTERM,),
        descriptors=(),
        environment=os.environ,
    )
    try:
        os.kill(group._leader.pid, signal.SIGTERM)
        assert not group.wait(0.2)
    finally:
        assert group.kill() is None
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


REAL = """
import os, random, signal, time

def score(prompt, completion, record):
    what, _, number = completion.partition(" ")
    if what == "exit":
        os._exit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(1000)
    if what == "fork" and os.fork() == 0:
        return -1.0  # the child goes on as if it were the process
    if what == "close":
        os.closerange(3, 64)
    if what == "child":
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", str(10**6 + os.getppid()))
    time.sleep(random.Random(number).random() * 0.004)
    return float(number)
"""

GOOD = ("good", "fork", "child")


def processes() -> list[str]:
    """Command lines of the reward processes of this test, and of what they started, without zombies."""
    found = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    own = (f'"trainer": {os.getpid()}', f"sleep {10**6 + os.getpid()}")
    return [line for line in found.splitlines() if line[0] != "Z" and any(text in line for text in own)]


def score_events(folder: Path, seed: int, n_calls: int, *, interrupts: int = 0) -> None:
    """Score seeded calls in real processes; check answers, blame, and that nothing is left."""
    (folder / "my_real_reward.py").write_text(REAL)
    draw = random.Random(seed)
    pool = RewardPool(RewardSource("mine", "my_real_reward:score", folder=str(folder)), processes=3, timeout=1.0)
    kinds = (*GOOD, "exit", "kill", "hang", "close")
    for first in range(0, n_calls, 50):
        texts = [
            f"{kind} {number}"
            for number, kind in enumerate(
                draw.choices(kinds, (80, 3, 2, 3, 3, 1, 2), k=min(50, n_calls - first)), first
            )
        ]
        batch = [RewardCall("p", text, {}, f"f:{text.split()[1]}") for text in texts]
        for _ in range(interrupts):
            timer = threading.Timer(draw.random() * 0.6, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            try:
                pool.score(batch)
                timer.join()
            except KeyboardInterrupt:
                # It came in score(), which closes the pool, or after it: then no process has a call, and one may
                # still be importing.
                assert not any(process.pending for process in pool._processes)
                if not pool._processes:
                    assert processes() == []
            finally:
                timer.cancel()
        outcomes = pool.score(batch)
        for text, outcome in zip(texts, outcomes, strict=True):
            kind, number = text.split()
            if kind in GOOD:
                assert outcome.value == float(number), (text, outcome)
            else:
                assert outcome.error.startswith(f"f:{number}: reward 'mine': "), (text, outcome)
    pool.close()
    assert processes() == []


def test_real_processes_answer_and_are_blamed_for_what_they_did(tmp_path):
    score_events(tmp_path, seed=3, n_calls=50)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.soak if seed else pytest.mark.wide) for seed in range(4)]
)
def test_hundreds_of_events_in_real_processes(tmp_path, seed):
    score_events(tmp_path, seed, n_calls=400)


@pytest.mark.wide
def test_ctrl_c_at_random_times_leaves_no_process(tmp_path):
    score_events(tmp_path, seed=9, n_calls=200, interrupts=5)
