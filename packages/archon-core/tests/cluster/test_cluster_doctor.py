"""``archon doctor --cluster`` on real ranks, of which one has another version, clock or folder."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from archon_core.cluster import command
from archon_core.cluster.command import examine_ranks
from archon_core.cluster.joining import wait_for_ranks
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_core.plugins import Registry
from archon_core.plugins.loader import load_core
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.loopback_store import serve_loopback_store
from archon_core.ranks.ranks import Ranks
from archon_testing.worlds import run_world


def examine(layout, folder, odd):
    """The report of a world in which the rank ``odd`` differs in everything."""
    ranks = Ranks.of_process_group()
    is_odd = ranks.rank == odd
    plugin = load_core()
    report = examine_ranks(
        ranks,
        parse_layout(layout),
        folder / ("other" if is_odd else "shared"),
        registry=Registry([replace(plugin, status="failed") if is_odd else plugin]),
        clock=lambda: time.time() + (3600 if is_odd else 0),
        patience=0.3,
    )
    findings = [(finding.subject, finding.state, finding.found) for finding in report.findings]
    return findings, len(report.links), report.is_consistent


def test_the_odd_rank_is_named_for_every_check_and_nothing_is_left_in_the_folders(tmp_path):
    host = os.uname().nodename
    (tmp_path / "shared").mkdir()
    results = run_world(examine, 3, ("archon:d3", tmp_path, 0))
    assert all(result == results[0] for result in results), "every rank exits with the same code"
    findings, n_links, is_consistent = results[0]
    assert not is_consistent
    failures = [(subject, found) for subject, state, found in findings if state == "failure" and "axis" not in subject]
    assert [subject for subject, _ in failures] == ["plugin core", "clocks", "shared folder"]
    assert f"failed on rank 0 ({host}); loaded on the other 2" in failures[0][1]
    clock = re.match(rf"rank 0 \({host}\): ([\d.]+) s ahead of the others \(error at most ([\d.]+) s\)", failures[1][1])
    assert clock is not None, failures[1][1]
    seconds, error = map(float, clock.groups())
    assert abs(seconds - 3600) <= error + 0.001, "both are rounded to milliseconds"
    assert f"rank 0 ({host}): another folder than that of the 2 ranks" in failures[2][1]
    assert n_links == 3
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    assert not any((tmp_path / "shared").iterdir())


def test_equal_ranks_are_consistent_and_each_axis_is_measured(tmp_path):
    [(findings, n_links, is_consistent), *_] = run_world(examine, 4, ("archon:d2t2", tmp_path, None))
    assert is_consistent
    assert {state for _, state, _ in findings} == {"ok"}
    assert [subject for subject, _, _ in findings] == [
        "ranks",
        "versions",
        "clocks",
        "shared folder",
        "axis dp_shard",
        "axis tp",
    ]
    assert n_links == 4


def run_archon(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "archon_core.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.wide
def test_the_command_starts_local_ranks_and_prints_tables_or_json(tmp_path):
    given = ("doctor", "--cluster", "--layout", "archon:d2", "--folder", str(tmp_path / "runs"))
    shown = run_archon(*given)
    assert shown.returncode == 0, shown.stderr
    assert "every rank reads what every other one writes" in shown.stdout
    assert "dp_shard  0 - 1" in shown.stdout
    printed = json.loads(run_archon(*given, "--json").stdout)
    assert [rank["interface"] for rank in printed["ranks"]] == ["lo", "lo"]
    assert printed["links"][0]["bandwidth"] > 0


@pytest.mark.wide
def test_every_rank_of_srun_exits_with_1_if_one_differs(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),
    }
    with ThreadPoolExecutor(2) as pool:
        given = ("doctor", "--cluster", "--folder", str(tmp_path))
        ended = [
            pool.submit(
                run_archon,
                *given,
                **step,
                SLURM_PROCID=str(rank),
                SLURM_LOCALID=str(rank),
                ARCHON_DISABLE_PLUGINS="rl" if rank else "",
            )
            for rank in range(2)
        ]
        first, second = (one.result() for one in ended)
    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert "plugin rl" in first.stdout
    assert second.stdout == ""


@pytest.mark.wide
def test_ranks_that_do_not_arrive_are_named():
    place = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ended = run_archon("doctor", "--cluster", "--timeout", "1", **place, **rendezvous)
    assert ended.returncode == 2
    assert "ranks: 1-2 of 3 did not arrive within 1 s; found rank 0 (" in ended.stderr


def test_a_rank_whose_store_ends_while_it_waits_for_others_says_where_to_look():
    store = serve_loopback_store()
    client = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=30))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_ranks, client, RankEnvironment(1, 3, 0, 1), timeout=60)
        while not store.check(["host/1"]):
            time.sleep(0.01)
        del store
        with pytest.raises(ConfigError, match=r"ranks: rank 1 \(.*\) lost the store of rank 0 .*; read the output"):
            waiting.result(60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": None}, "found neither --layout nor a rank's environment"),
        ({"layout": "sglang:d2"}, "found sglang:d2, whose engine generates"),
        ({"layout": "archon:d2", "timeout": 0.0}, "--timeout: found 0; allowed are positive"),
    ],
)
def test_wrong_options_are_errors_before_anything_starts(arguments, message, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    given = {"timeout": 1.0, "as_json": False, "folder": Path("runs"), **arguments}
    with pytest.raises(ConfigError, match=message):
        command.examine(given.pop("layout"), given.pop("folder"), **given)


def test_a_layout_of_another_size_than_the_started_ranks_is_an_error(monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    before = dist.is_initialized()
    with pytest.raises(ConfigError, match=r"found archon:d4, of 4 ranks, and 2 started"):
        command.examine("archon:d4", Path("runs"), timeout=1.0, as_json=False)
    assert dist.is_initialized() == before


def test_options_of_the_cluster_need_it(archon):
    outcome = archon("doctor", "--layout", "archon:d2")
    assert outcome.code == 2
    assert "--layout: found without --cluster" in outcome.err
