"""A teacher on real servers: the numbers of a teacher on the trainer's ranks, over layouts of both, and servers that
die, have another model, or are left when a run ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from archon_core.contracts.rollout import RolloutConfig, ScoredModel
from archon_core.errors import ConfigError, ServerError
from archon_core.ranks.ranks import Ranks
from archon_core.serving.run_token import TOKEN
from archon_rl.trainer.served_teacher import ServedTeacher
from archon_rollout.served.scoring_engine import ScoringServers
from archon_testing.fork_server import ForkServer, starting_by_forks
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from distillation_numbers import TEMPERATURE, VOCABULARY, compare_all, make_engine, numbers

pytestmark = pytest.mark.wide

STEPS = 3
OPTION = "teacher.rollout"
QUICK = {"health_check_interval_seconds": 0.2, "health_check_timeout_seconds": 30.0}


def servers_of(folder: Path, ranks: Ranks = Ranks(), *, dtype: str = "float64", **options) -> ScoringServers:  # noqa: B008
    """Servers of the teacher in ``folder``, in requests of a few sequences."""
    model = ScoredModel(str(folder / "teacher"), VOCABULARY, max_tokens=10, temperature=TEMPERATURE, dtype=dtype)
    config = RolloutConfig(**{"backend": "served:d1", **QUICK, **options})
    return ScoringServers(config, model, option=OPTION, ranks=ranks, folder=folder / "servers")


def on_servers(layout: str, backend: str, folder: Path, dtype: str, fork_server_address: str) -> dict[str, Any]:
    make_actor = partial(make_engine, "actor", layout, dtype=dtype)
    forks = ForkServer(address=fork_server_address, nested=True)
    with starting_by_forks(forks):
        servers = servers_of(folder, make_actor().data_ranks.everyone, dtype=dtype, backend=backend)
        try:
            return numbers(make_actor, lambda _: ServedTeacher(servers, TEMPERATURE), n_steps=STEPS)
        finally:
            servers.close()
            forks.close()


def on_ranks(dtype: str) -> dict[str, Any]:
    make_actor = partial(make_engine, "actor", "d1", dtype=dtype)
    return numbers(make_actor, lambda _: make_engine("teacher", "d1", dtype=dtype), n_steps=STEPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has the teacher's checkpoint."""
    path = tmp_path_factory.mktemp("model")
    make_engine("teacher", "d1").engine.save(path / "teacher", "hf")
    return path


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return on_ranks("float64")


@pytest.mark.parametrize(
    ("layout", "backend"),
    [("d1", "served:d1"), ("d2", "served:d2"), ("p2", "served:d1t2"), ("c2", "served:d1")],
)
def test_distillation_from_servers_has_the_numbers_of_one_process(
    folder, expected, layout, backend, fork_server_address
):
    arguments = (layout, backend, folder, "float64", fork_server_address)
    ranks = [on_servers(*arguments)] if layout == "d1" else run_world(on_servers, 2, arguments, time_limit=300)
    compare_all(ranks, expected)


def test_distillation_from_servers_in_fp32_has_the_numbers_of_one_process(tmp_path, fork_server_address):
    make_engine("teacher", "d1", dtype="float32").engine.save(tmp_path / "teacher", "hf")
    arguments = ("d2", "served:d1", tmp_path, "float32", fork_server_address)
    ranks = run_world(on_servers, 2, arguments, time_limit=300)
    compare_all(ranks, on_ranks("float32"), 1e-5)


def pids_of(folder: Path) -> list[int]:
    """Processes whose command line has the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parts = path.read_bytes().split(b"\0")
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if b"serve" in parts and state != "Z" and any(part.startswith(bytes(folder)) for part in parts):
            found.append(int(path.parent.name))
    return sorted(found)


SEQUENCES = [[number % 90 + 1, 7, 30, number % 50, 2] for number in range(400)]


def test_requests_move_from_a_killed_server_to_another_and_the_last_one_ends_the_run(folder):
    servers = servers_of(folder, backend="served:d2")
    try:
        whole = servers.score(SEQUENCES)
        first, second = (started.process for started in servers._processes._processes)
        killing = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.2); os.kill({first.pid}, 9)"])
        while first.poll() is None:
            assert servers.score(SEQUENCES) == whole
        killing.wait()
        assert servers.score(SEQUENCES) == whole
        second.kill()
        second.wait()
        with pytest.raises(
            ServerError, match=r"(?s)^teacher\.rollout: server 0 ended with code -9; the end of its log"
        ):
            servers.score(SEQUENCES)
    finally:
        servers.close()
    assert pids_of(folder) == []


@pytest.mark.usefixtures("by_forks")
def test_running_servers_are_used_if_they_have_the_teachers_model(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    make_engine("actor", "d1").engine.save(tmp_path / "teacher", "hf")
    own = servers_of(folder)
    try:
        address = own._pool.target_server_addresses[0]
        again = servers_of(folder, addresses=[address])
        try:
            assert again.score(SEQUENCES[:9]) == own.score(SEQUENCES[:9])
            assert again.decisions == []
        finally:
            again.close()
        with pytest.raises(ConfigError, match=rf"server {address}: found the model {folder / 'teacher'}, with another"):
            servers_of(tmp_path, addresses=[address])
    finally:
        own.close()
    with pytest.raises(ConfigError, match=rf"teacher\.rollout\.addresses: found no server at {address}; start it with"):
        servers_of(folder, addresses=[address])


RUN = (
    "examples/distill_arithmetic.yaml",
    "warm_start.steps=1",
    "teacher.warm_start.steps=1",
    "trainer.max_steps=200",
    "trainer.eval_before_train=false",
    "trainer.eval_every=0",
    "trainer.verify_export=false",
    "data.batch_size=4",
    "actor.backend=archon:d1",
    "teacher.engine_type=rollout",
    "teacher.rollout.backend=served:d1",
    "teacher.rollout.health_check_interval_seconds=0.2",
)


@pytest.mark.parametrize("event", ["killed", "Ctrl-C"])
def test_a_run_leaves_no_server_behind(tmp_path, event):
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()", "train", *RUN]
    run = subprocess.Popen(
        [*command, f"cluster.fileroot={tmp_path}"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    seen = []
    try:
        for line in run.stdout:
            seen.append(line)
            if re.match(r"step 2/200", line):
                [server] = pids_of(tmp_path)
                os.kill(
                    server if event == "killed" else run.pid, signal.SIGKILL if event == "killed" else signal.SIGINT
                )
                break
        rest, _ = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    output = "".join(seen) + rest
    deadline = time.monotonic() + 20
    while pids_of(tmp_path):
        assert time.monotonic() < deadline, output
        time.sleep(0.1)
    if event == "killed":
        assert run.returncode != 0
        assert "teacher.rollout: server 0 ended with code -9" in output
    else:
        assert run.returncode == 130, output
