"""Metrics loggers with their real libraries, which need no network here: which are used, and what they write."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archon_core.contracts.decisions import Decision
from archon_core.contracts.loggers import LoggedRun, LoggerSpec
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_train.experiment import load_config
from archon_train.loggers.opening import logger_problems, open_loggers
from archon_train.preflight import plan_run

VALUES = {1: {"loss": 1.0}, 2: {"loss": 0.5, "eval/reward": 0.25}, 3: {"loss": float("nan")}}


def read(tmp_path: Path, *overrides: str) -> Any:
    file = tmp_path / "config.yaml"
    file.write_text("experiment_name: e\ntrial_name: t\nactor: {model_config: {model_type: qwen3}}\n")
    return load_config(file, overrides, allow_missing=True)


def run_of(tmp_path: Path, resume_step: int | None = None) -> LoggedRun:
    return LoggedRun("e", "t", tmp_path / "run", {"seed": 1, "actor": {"lr": 1e-3}}, resume_step)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function after which a module is not installed."""
    find_spec = importlib.util.find_spec

    def remove(module: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest)
        )

    return remove


def write(config: Any, run: LoggedRun, steps: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    """Log ``VALUES`` to all loggers that the options select."""
    run.folder.mkdir(exist_ok=True)
    decisions: list[Decision] = []
    loggers = dict(open_loggers(config, registry(), run, decisions))
    assert decisions == []
    for step in steps:
        for logger in loggers.values():
            logger.log(step, VALUES[step])
    for logger in loggers.values():
        logger.close()
    return loggers


def test_by_default_only_tensorboard_is_used(tmp_path: Path) -> None:
    assert list(write(read(tmp_path).config, run_of(tmp_path))) == ["tensorboard"]


def test_a_missing_tensorboard_is_a_recorded_decision(tmp_path: Path, without: Any) -> None:
    without("tensorboard")
    config, decisions = read(tmp_path).config, []
    assert dict(open_loggers(config, registry(), run_of(tmp_path), decisions)) == {}
    (decision,) = decisions
    assert (decision.option, decision.effective) == ("stats_logger.tensorboard", "metrics.jsonl")
    assert 'pip install "archon-train[tensorboard]"' in decision.reason
    assert list(logger_problems(config, registry())) == []


def test_a_logger_without_its_library_is_an_error_before_the_run(tmp_path: Path, without: Any) -> None:
    without("wandb")
    loaded = read(tmp_path, "stats_logger.wandb.mode=offline")
    texts = [obstacle.text for obstacle in plan_run(loaded, registry()).obstacles]
    expected = (
        "stats_logger.wandb: found it switched on, but wandb is not installed; install it "
        '(pip install "archon-train[wandb]"), or set stats_logger.wandb.mode=disabled'
    )
    assert expected in texts
    assert not any("wandb" in obstacle.text for obstacle in plan_run(read(tmp_path), registry()).obstacles)


def test_a_logger_that_cannot_be_opened_is_an_error_with_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: Any, run: LoggedRun) -> None:
        raise OSError("no space")

    monkeypatch.setattr(LoggerSpec, "load", lambda self: refuse)
    with pytest.raises(ConfigError) as raised:
        dict(open_loggers(read(tmp_path).config, registry(), run_of(tmp_path), []))
    expected = "stats_logger.tensorboard: tensorboard cannot be opened: OSError: no space; correct its options"
    assert str(raised.value) == expected  # it has no mode that switches it off


def test_options_of_a_logger_that_is_switched_off_are_recorded(tmp_path: Path) -> None:
    options = ("mode=disabled", "project=p", "group=null", "config.note=mine")
    loaded = read(tmp_path, *(f"stats_logger.wandb.{option}" for option in options))
    found = {d.option: d.requested for d in plan_run(loaded, registry()).decisions if "wandb" in d.option}
    assert found.keys() == {f"stats_logger.wandb.{name}" for name in ("project", "group", "config")}
    assert (found["stats_logger.wandb.project"], found["stats_logger.wandb.group"]) == ("p", "null")


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_an_unknown_mode_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"stats_logger\.{name}\.mode: found 'onlin'.*allowed"):
        read(tmp_path, f"stats_logger.{name}.mode=onlin")


def test_tensorboard_shows_the_numbers_of_a_resumed_run_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = read(tmp_path, f"stats_logger.tensorboard.path={tmp_path / 'tb'}").config
    write(config, run_of(tmp_path))
    write(config, run_of(tmp_path, resume_step=1), steps=(2,))
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ("mode=offline", "tags=[a,b]", "config={note: mine}", "id_suffix=x")
    config = read(tmp_path, *(f"stats_logger.wandb.{option}" for option in options)).config
    write(config, run_of(tmp_path))
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*-e_t_x/run-e_t_x.wandb")
    found = read_wandb(file)
    deadline = time.monotonic() + 60
    while not found["ended"] and time.monotonic() < deadline:  # a process of the library writes the file
        time.sleep(0.1)
        found = read_wandb(file)
    assert [(row["step"], row["loss"]) for row in found["rows"][:2]] == [(1, 1.0), (2, 0.5)]
    assert found["rows"][1]["eval/reward"] == 0.25
    assert (found["project"], found["name"], found["group"], found["tags"]) == ("e", "t", "e_t", ["a", "b"])
    assert {"seed", "actor", "note"} <= found["config"]


def read_wandb(file: Path) -> dict[str, Any]:
    """Rows and facts of a run's file."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"rows": [], "config": set(), "ended": False}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
            found |= {"project": run.project, "name": run.display_name, "group": run.run_group, "tags": [*run.tags]}
            found["config"] |= {update.key for update in run.config.update}
        found["ended"] |= record.HasField("exit")
        if record.HasField("history"):
            items = record.history.item
            row = {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in items}
            found["rows"].append(row)
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind wandb's header of 7 bytes: in blocks of 32 KiB, each piece
    has a checksum (4 bytes), its length (2), and whether it is whole, first, middle or last (1)."""
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_swanlab_writes_files(tmp_path: Path) -> None:
    pytest.importorskip("swanlab", reason="swanlab is not installed")
    write(read(tmp_path, "stats_logger.swanlab.mode=offline").config, run_of(tmp_path))
    files = [file for file in (tmp_path / "run/swanlab").rglob("*") if file.is_file()]
    content = b"".join(file.read_bytes() for file in files)
    assert b"eval/reward" in content or any("eval" in file.name for file in files)


def test_trackio_keeps_numbers_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    config = read(tmp_path, "stats_logger.trackio.mode=local").config
    write(config, run_of(tmp_path))
    write(config, run_of(tmp_path, resume_step=1), steps=(2,))
    rows = sqlite_storage.SQLiteStorage.get_logs("e", "t")
    assert [row["step"] for row in rows] == [1, 2, 3, 2]
    assert rows[1]["eval/reward"] == 0.25
