"""Reward processes: calls that hang, raise or end their process have no reward, and no process outlives its trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archon_core.errors import ConfigError, RewardError
from archon_rl.rewards import pool as pool_module
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.rewards.environment import reward_environment
from archon_rl.rewards.in_process import InProcessRewards
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import RewardSource

REWARD = """
import os, re, signal, subprocess, sys, threading, time
from archon_core.errors import ConfigError, DataError

def score(prompt, completion, record):
    what, _, argument = completion.partition(" ")
    if what == "sleep":
        time.sleep(1000)
    if what == "regular":  # compiled code that keeps Python's threads from running
        re.match(r"(a+)+$", "a" * 64 + "b")
    if what == "exit":
        os._exit(3)
    if what == "sys.exit":
        sys.exit(0)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise TimeoutError("no sandbox")
    if what == "record":
        raise DataError("no answer")
    if what == "configuration":
        raise ConfigError("no judge")
    if what == "secrets":
        return [name for name in ("ARCHON_SERVER_TOKEN", "JUDGE_API_KEY") if name in os.environ] == ["JUDGE_API_KEY"]
    if what == "none":
        return None
    if what == "print":
        print("noise", flush=True)
    if what == "pid":
        return float(os.getpid())
    if what == "torch":
        return "torch" in sys.modules
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "child":  # a sandbox, which the reward would wait for
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        open(argument, "w").write(str(child.pid))
        child.wait()
    if what == "terminate":  # a sandbox that the reward ends by itself
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        child.terminate()
        return float(child.wait())
    return float(len(record["answer"]))
"""

TIMEOUT = 1.5
"""Long enough for an answer on a busy machine, short enough to wait for it."""


@pytest.fixture
def source(tmp_path: Path) -> RewardSource:
    (tmp_path / "my_reward.py").write_text(REWARD)
    return RewardSource("mine", "my_reward:score", folder=str(tmp_path))


@pytest.fixture
def make_pool(source: RewardSource) -> Iterator[Callable[..., RewardPool]]:
    pools: list[RewardPool] = []

    def make(processes: int = 1, timeout: float = 60, chosen: RewardSource = source) -> RewardPool:
        pools.append(RewardPool(chosen, processes=processes, timeout=timeout))
        return pools[-1]

    yield make
    for one in pools:
        one.close()


def calls(*completions: str) -> list[RewardCall]:
    return [RewardCall("p", text, {"answer": "five"}, f"f:{n}") for n, text in enumerate(completions)]


def one(pool: RewardPool, completion: str) -> Outcome:
    [outcome] = pool.score(calls(completion))
    return outcome


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_outcomes_come_in_the_order_of_the_calls_and_processes_are_reused(make_pool):
    pool = make_pool(processes=2)
    # One process may answer a whole batch while the other starts.
    pids = {outcome.value for _ in range(3) for outcome in pool.score(calls(*["pid"] * 200))}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert [outcome.value for outcome in pool.score(calls("a", "none", "a"))] == [4.0, None, 4.0]
    assert pool.score([]) == []


def test_a_reward_process_imports_no_torch_and_gets_no_secrets_of_the_run(make_pool, monkeypatch):
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "hidden")
    monkeypatch.setenv("JUDGE_API_KEY", "of a service that the reward calls")
    assert [outcome.value for outcome in make_pool().score(calls("torch", "secrets"))] == [0.0, 1.0]


def test_secrets_are_the_variables_of_archon_with_such_names():
    kept = {"ARCHON_STRICT_PLUGINS": "1", "ARCHON_TOKENS_SHOWN": "1", "HF_TOKEN": "x", "PATH": "/bin"}
    secret = dict.fromkeys(("ARCHON_SERVER_TOKEN", "ARCHON_ETCD_PASSWORD", "ARCHON_API_KEY", "ARCHON_SECRET"), "x")
    assert reward_environment({**kept, **secret}) == kept


def test_failures_are_the_same_in_processes_and_in_the_trainer(make_pool, source, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "my_reward", None)
    del sys.modules["my_reward"]
    texts = ("a", "raise", "none", "sys.exit", "record")
    there, here = make_pool(), InProcessRewards(source)
    assert there.start() == here.start()
    assert there.score(calls(*texts)) == here.score(calls(*texts))
    raised, returned, data = there.score(calls("raise", "none", "record"))
    assert raised.error.startswith("f:0: reward 'mine': it raised TimeoutError: no sandbox (my_reward.py:")
    assert 'raise TimeoutError("no sandbox")' in raised.trace
    assert returned.error.startswith("f:1: reward 'mine': it returned None;")
    assert (data.error, data.trace) == ("f:2: no answer", "")
    for runner in (there, here):
        with pytest.raises(ConfigError, match=r"^f:1: no judge$"):
            runner.score(calls("a", "configuration"))


def test_a_call_that_hangs_has_no_reward_and_the_others_do(make_pool):
    outcomes = make_pool(processes=2, timeout=TIMEOUT).score(calls("a", "sleep", *["a"] * 20, "regular", "a"))
    hung = [outcome for outcome in outcomes if outcome.failed]
    assert [outcome.timed_out for outcome in hung] == [True, True]
    assert hung[0].error == (
        "f:1: reward 'mine': it gave no answer within 1.5 s (rewards.timeout_seconds); the completion was 'sleep'"
    )
    assert [outcomes.index(outcome) for outcome in hung] == [1, 22]


@pytest.mark.parametrize(
    ("how", "text"), [("exit", "it ended its process with exit code 3"), ("kill", "SIGKILL killed its process")]
)
def test_a_call_that_ends_its_process_has_no_reward_and_the_others_do(make_pool, how, text):
    outcomes = make_pool().score(calls("a", how, "a", "a"))
    assert [outcome.value for outcome in outcomes] == [4.0, None, 4.0, 4.0]
    assert outcomes[1].error == f"f:1: reward 'mine': {text}; the completion was '{how}'"
    assert not outcomes[1].timed_out


def test_a_batch_in_which_every_call_ends_its_process_is_given_up(make_pool, monkeypatch):
    monkeypatch.setattr(pool_module, "PATIENCE", 3)
    pool = make_pool()
    outcomes = pool.score(calls(*["exit"] * 100))
    assert all(outcome.failed for outcome in outcomes)
    assert sum("exit code 3" in outcome.error for outcome in outcomes) == 3
    assert outcomes[-1].error == "f:99: reward 'mine': not called: 3 calls before it had no answer"
    assert one(pool, "a").value == 4.0


def test_output_of_a_reward_is_no_answer(make_pool):
    assert one(make_pool(), "print").value == 4.0


def test_signals_of_a_cluster_are_left_to_the_trainer_but_work_in_processes_of_the_reward(make_pool):
    pool = make_pool()
    assert one(pool, "interrupt").value == 4.0
    assert one(pool, "terminate").value == -signal.SIGTERM


def test_processes_that_a_hung_reward_started_end_with_it(make_pool, tmp_path):
    file = tmp_path / "child"
    outcome = one(make_pool(timeout=TIMEOUT), f"child {file}")
    assert outcome.timed_out
    wait_for_end(int(file.read_text()))


def test_a_closed_pool_leaves_no_process_and_starts_again(make_pool):
    pool = make_pool()
    pid = int(one(pool, "pid").value)
    pool.close()
    wait_for_end(pid)
    assert one(pool, "a").value == 4.0


def test_a_process_that_ended_between_batches_is_replaced_and_no_call_is_blamed(make_pool):
    pool = make_pool()
    pid = int(one(pool, "pid").value)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert one(pool, "a").value == 4.0


def test_an_interrupt_during_a_call_leaves_no_process(make_pool, monkeypatch):
    pool = make_pool()
    pid = int(one(pool, "pid").value)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_listen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one(pool, "sleep")
    wait_for_end(pid)


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_record_that_cannot_be_sent_has_no_reward_and_the_others_do(make_pool):
    records = ({"answer": lambda: None}, {"answer": "five"}, {"answer": Unreadable()}, {"answer": "six"})
    outcomes = make_pool().score([RewardCall("p", "c", record, f"f:{n}") for n, record in enumerate(records)])
    assert [outcome.value for outcome in outcomes] == [None, 4.0, None, 3.0]
    assert outcomes[0].error.startswith("f:0: cannot send the record to a reward process (")
    assert outcomes[2].error.startswith("f:2: a reward process cannot read the record (ValueError: ")


@pytest.mark.parametrize(
    ("source_code", "kind", "message"),
    [
        (
            "import missing_package",
            ConfigError,
            "importing 'broken' from .* raised ModuleNotFoundError: No module named",
        ),
        ("def score(completion): ...", ConfigError, r"found score\(completion\); allowed is a function of \(prompt"),
        (
            "import os; os._exit(7)",
            RewardError,
            "it ended its process with exit code 7 before it had imported",
        ),
    ],
)
def test_a_reward_that_cannot_be_imported_ends_the_run_before_it_begins(
    make_pool, tmp_path, source_code, kind, message
):
    (tmp_path / "broken.py").write_text(source_code)
    with pytest.raises(kind, match=message):
        make_pool(chosen=RewardSource("mine", "broken:score", folder=str(tmp_path))).start()


def test_an_import_that_takes_too_long_ends_the_run(make_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("archon_rl.rewards.reward_process.START_SECONDS", 0.3)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1000)")
    with pytest.raises(RewardError, match=r"it gave no answer within 0\.3 s before it had imported slow:score"):
        make_pool(chosen=RewardSource("mine", "slow:score", folder=str(tmp_path))).start()


def test_a_function_of_a_notebook_needs_the_trainers_own_process(make_pool):
    with pytest.raises(ConfigError, match=r"function of __main__, .*rewards\.processes=0"):
        make_pool(chosen=RewardSource("mine", "__main__:score")).start()


TRAINER = """
import json, sys
from archon_rl.rewards.calls import RewardCall
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import RewardSource

pool = RewardPool(RewardSource("mine", "my_reward:score", folder=sys.argv[1]), processes=2, timeout=1000)
answers = pool.score([RewardCall("p", "pid", {"answer": "5"}, "f") for _ in range(64)])
print(json.dumps([p._group._leader.pid for p in pool._processes]), flush=True)
pool.score([RewardCall("p", what, {"answer": "5"}, "f") for what in sys.argv[2:]])
"""


@pytest.mark.parametrize("work", [("sleep", "sleep"), ("regular", "regular")])
def test_a_killed_trainer_leaves_no_process_behind(source, work):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, source.folder, *work], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in trainer.stdout.readline().strip("[]\n").split(",")]
        assert all(map(is_running, pids))
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    for pid in pids:
        wait_for_end(pid)
