"""What ``archon servers`` reads of asynchronous sampling from the end of a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

from archon_rollout import sampling_status
from archon_rollout.sampling_status import SamplingStatus, read_sampling

ROW = {
    "step": 12,
    "collector/running": 3,
    "collector/waiting": 4,
    "staleness": 0.75,
    "staleness/0": 0.25,
    "staleness/1": 0.75,
    "staleness/2": 0.0,
    "stale_prompts": 1,
    "dropped/no_reward": 2.0,
    "dropped/left_out": 0.0,
    "collector/waited_seconds": 0.5,
    "collector/server_idle": 0.125,
    "collector/reward_seconds": 0.25,
    "server_version/127.0.0.1:7": 6,
}


def write(folder: Path, *lines: str) -> None:
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_the_last_step_is_read_and_described_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({**ROW, "step": 11}) + "\n", json.dumps(ROW) + "\n", '{"step": 12, "eval/reward": 1}\n')
    found = read_sampling(tmp_path)
    assert found == SamplingStatus(
        12, 3, 4, 0.75, {0: 0.25, 1: 0.75}, {"no_reward": 2, "stale": 1}, 0.5, 0.125, 0.25, {"127.0.0.1:7": 6}
    )
    assert found.describe() == (
        "sampling at step 12: staleness 0.75 (0: 25%, 1: 75%); 3 groups running, 4 in the queue; dropped: 2 no reward, "
        "1 stale; trainer waited 0.5 s, servers idle 12%; rewards 0.25 s per group"
    )


def test_a_row_that_is_being_written_and_a_cut_tail_are_skipped(tmp_path: Path, monkeypatch) -> None:
    whole = json.dumps(ROW) + "\n"
    monkeypatch.setattr(sampling_status, "TAIL_BYTES", len(whole) + 20)
    write(tmp_path, json.dumps({**ROW, "step": 11}) + "\n", whole, '{"step": 13, "coll')
    found = read_sampling(tmp_path)
    assert found is not None
    assert found.step == 12


def test_runs_without_a_collector_have_no_status(tmp_path: Path) -> None:
    assert read_sampling(tmp_path) is None
    write(tmp_path, '{"step": 1, "reward": 0.5}\n')
    assert read_sampling(tmp_path) is None
