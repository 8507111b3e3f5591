"""Run folders that tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NASTY = '</script><img src="https://example.invalid/x.png" onerror="alert(1)"> & "quoted" \u2028 é'
"""Text that must appear on a page as it is, and do nothing."""


AHEAD: dict[str, Any] = {
    "staleness": 0.75,
    "staleness/0": 0.25,
    "staleness/1": 0.75,
    "stale_prompts": 1,
    "trained_tokens": 40,
    "dropped/no_reward": 2.0,
    "dropped/left_out": 0.0,
    "collector/running": 3,
    "collector/waiting": 4,
    "collector/waited_seconds": 0.5,
    "collector/server_idle": 0.125,
    "collector/reward_seconds": 0.25,
    "server_version/127.0.0.1:7": 6,
}
"""What a row has of sampling ahead, on one server."""


def write_run(folder: Path, rows: list[dict[str, Any]] | None = None, *, config: str = "", **files: str) -> Path:
    """Write a run folder.

    Args:
        folder: where.
        rows: of its metrics; by default three steps.
        config: content of config.yaml.
        files: other files, by name, with ``__`` for ``/`` and ``_dot_`` for a dot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [step_row(step) for step in (1, 2, 3)] if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(
        config or "algorithm: grpo\ntrainer: {max_steps: 3}\nactor: {backend: archon:d1}\n"
    )
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def step_row(step: int, **values: Any) -> dict[str, Any]:
    """A training row."""
    times = {"time/rollout": 0.5, "time/reward": 0.1, "time/update": 1.4, "time/step": 2.0}
    row = {"step": step, "reward": 0.1 * step, "loss": 1.0 / step, "gradient_norm": 2.0, "tokens": 1000}
    return row | {"tokens_per_second": 500.0} | times | values


def asynchronous_row(step: int, **values: Any) -> dict[str, Any]:
    """A training row of a run that samples ahead on two servers, of which one lags behind."""
    servers = {"server_version/127.0.0.1:7": step + 2, "server_version/127.0.0.1:8": 3}
    published = {"publish/seconds": 0.4, "publish/failed": 0, "publish/transfer_s": 0.3, "publish/commit_s": 0.1}
    return step_row(step) | AHEAD | {"staleness_max": 1} | servers | published | values


def sample_line(step: int = 1, **values: Any) -> str:
    """A line of a trajectory file: a prompt of one token, and three sampled tokens."""
    line: dict[str, Any] = {
        "step": step,
        "group": 0,
        "sample": 0,
        "reward": 1.0,
        "dropped": "",
        "truncated": False,
        "segments": [{"text": "2+3=", "version": None}, {"text": "a€b", "version": 4}],
        "token_ids": [7, 1, 2, 3, 4],
        "loss_mask": [0, 1, 1, 1, 1],
        "logprobs": [0.0, -0.5, -0.25, -0.25, -1.0],
        "versions": [-1, 4, 4, 4, 4],
        "metadata": {},
        "pieces": [["a", 1], ["€", 2], ["b", 1]],
        "trainer_logprobs": [0.0, -0.5, -0.5, -0.5, -3.0],
    }
    return json.dumps(line | values) + "\n"
