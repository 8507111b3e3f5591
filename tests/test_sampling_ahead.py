"""Asynchronous training with real servers: the numbers of synchronous training at staleness 0, bounds, and recovery."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.cli.main import main
from archon_core.run_files.trajectories import read_step, steps_in
from archon_rl.trainer import collector_link
from archon_rollout.sampling_status import read_sampling
from archon_rollout.served import launching
from archon_testing.fork_server import ForkServer, install
from archon_train.run.metrics import read_metrics
from small_grpo_runs import small_run, train

CONFIGURATION = small_run("""
data: {validation_size: 8, arithmetic: {max_operand: 9}}
warm_start: {steps: 30, batch_size: 16}
gconfig: {max_new_tokens: 4}
trainer: {max_steps: 5}
""")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export/model.safetensors")


def steps(run: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "reward" in row]


@pytest.fixture(scope="module", autouse=True)
def started(fork_server_address: str) -> Iterator[list[int]]:
    """Starts collectors and servers as forks of a process that has imported everything. The collectors' process ids."""
    pids: list[int] = []

    def note(command: Sequence[str], pid: int) -> None:
        if "-c" in command:
            pids.append(pid)

    with pytest.MonkeyPatch.context() as patch:
        for module in (collector_link, launching):
            patch.setattr(module, "subprocess", module.subprocess)  # to be restored
        install(ForkServer(note, address=fork_server_address), collector_link, launching)
        yield pids


@pytest.fixture
def collectors(started: list[int]) -> Callable[[], list[int]]:
    """The collectors that run."""
    return lambda: [pid for pid in started if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory) -> Path:
    return train(CONFIGURATION, tmp_path_factory.mktemp("synchronous"), "rollout.backend=local")


def test_staleness_0_trains_as_synchronous_sampling_does_also_after_kills_of_the_collector(
    synchronous, collectors, tmp_path
):
    """A killed collector is replaced, and its groups are sampled again; the first step is sampled by the first one."""
    killed, done = [], threading.Event()
    metrics = tmp_path / "small/run/metrics.jsonl"

    def kill() -> None:
        for step in (1, 3):
            while not done.is_set() and f'"step": {step},' not in (metrics.read_text() if metrics.exists() else ""):
                time.sleep(0.01)
            for pid in collectors():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run = train(CONFIGURATION, tmp_path, "rollout.backend=served:d1")
    finally:
        done.set()
        thread.join()
    assert len(killed) == 2
    for ours, theirs in zip(steps(run), steps(synchronous), strict=True):
        assert ours["staleness_max"] == 0
        for name in ("reward", "tokens", "loss", "gradient_norm", "selected"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-9, abs=1e-9)
    torch.testing.assert_close(weights(run), weights(synchronous), rtol=0, atol=1e-9)
    assert not collectors()


def test_a_resumed_run_consumes_what_its_collector_had_finished(tmp_path):
    ahead = ("rollout.backend=served:d1", "rollout.max_head_offpolicyness=2")
    whole = train(CONFIGURATION, tmp_path, *ahead, "trainer.max_steps=3", "trainer.save_every=3")
    [file] = whole.glob("checkpoints/*/collection.msgpack")
    assert file.stat().st_size > 1000
    run = train(CONFIGURATION, tmp_path, *ahead, "trainer.max_steps=6", "trainer.resume=true")
    rows = steps(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["staleness_max"] <= 2 and row["stale_prompts"] == 0 for row in rows)
    assert max(row["staleness_max"] for row in rows[3:]) > 0


def shown_commands() -> list[list[str]]:
    """Commands of docs/async.md that read a run."""
    text = (Path(__file__).parents[1] / "docs/async.md").read_text(encoding="utf-8")
    shown = re.findall(r"^archon ((?:report|trajectories|servers) .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in shown if "--watch" not in line]


@pytest.mark.wide
def test_what_a_run_dumps_and_reports_is_shown_by_the_commands_of_the_page(tmp_path, capsys, monkeypatch):
    """Requests are ended at every publication, and continued."""
    options = ("rollout.max_head_offpolicyness=2", "rollout.interruption=abort", "rollout.enable_rollout_tracing=true")
    checks = ("rollout.dump_to_file=true", "rollout.check_trajectory_format=true", "trainer.max_steps=4")
    run = train(CONFIGURATION, tmp_path, "rollout.backend=served:d1", *options, *checks)
    rows = steps(run)
    for row in rows:
        lines = list(read_step(steps_in(run)[row["step"]]))
        assert sum(one.reward for one in lines) / len(lines) == pytest.approx(row["reward"])
        tokens = [(one.step - 1, version) for one in lines for version in one.versions if version >= 0]
        assert len(tokens) == sum(one.loss_mask.count(1) for one in lines)
        assert sum(value for name, value in row.items() if name.startswith("staleness/")) == pytest.approx(1.0)
        assert row["staleness"] == pytest.approx(row["staleness_in_flight"] + row["staleness_in_queue"])
        assert 0 <= row["collector/server_idle"] <= 1
        assert [value for name, value in row.items() if name.startswith("server_version/")] == [2 * (row["step"] - 1)]
    log = (run / "collector.log").read_text(encoding="utf-8")
    assert len(re.findall(r"INFO .*group \d+: \d+ prompt tokens, completions of ", log)) >= 16
    capsys.readouterr()
    commands = shown_commands()
    assert {command[0] for command in commands} == {"report", "trajectories"}
    monkeypatch.setenv("COLUMNS", "200")
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([str(run) if word.startswith("runs/") else word for word in command])
        assert not end.value.code
        assert capsys.readouterr().out.strip() or "--json" in command
    assert read_sampling(run) is not None
