"""Ranges cost nothing while no profiler records; traces and snapshots are complete files or none."""

from __future__ import annotations

import gzip
import inspect
import json
from pathlib import Path

import pytest
import torch

from archon_engine.profiling import recording
from archon_engine.profiling.ranges import profiled_range
from archon_engine.profiling.recording import memory_history, traced


class NotShown:
    def __str__(self) -> str:
        raise AssertionError("without a profiler, names are not formatted")


def test_without_a_profiler_a_range_does_nothing() -> None:
    with profiled_range("forward", NotShown()) as found:
        assert found is None
    assert profiled_range("a") is profiled_range("b")


def test_a_trace_has_operations_and_ranges(tmp_path: Path) -> None:
    file = tmp_path / "rank-0.trace.json.gz"
    with traced(file), profiled_range("forward", 3):
        torch.ones(4, 4) @ torch.ones(4, 4)
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = {event["name"] for event in events}
    assert {"forward 3", "aten::mm", "[memory]"} <= names
    shapes = [event["args"]["Input Dims"] for event in events if event["name"] == "aten::mm"]
    assert shapes == [[[4, 4], [4, 4]]]
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_raises_leaves_no_trace_and_no_profiler(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from the step"), traced(tmp_path / "rank-0.trace.json.gz"):
        raise ValueError("from the step")
    assert list(tmp_path.iterdir()) == []
    test_without_a_profiler_a_range_does_nothing()


def test_a_memory_snapshot_is_written_when_the_block_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(recording, "record_cuda_memory", calls.append)
    monkeypatch.setattr(recording, "dump_cuda_memory", lambda file: Path(file).write_text("snapshot", encoding="utf-8"))
    monkeypatch.setattr(recording, "stop_recording_cuda_memory", lambda: calls.append("stop"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    file = tmp_path / "rank-0.memory.pickle"
    with memory_history(file, 7):
        calls.append("step")
    assert calls == [7, "step", "synchronize", "stop"]
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [(file.name, "snapshot")]
    with pytest.raises(ValueError, match="from the step"), memory_history(tmp_path / "other", 7):
        raise ValueError("from the step")
    assert calls[-1] == "stop"
    assert list(tmp_path.iterdir()) == [file]


def test_torch_still_has_the_private_functions_of_memory_snapshots() -> None:
    record = inspect.signature(torch.cuda.memory._record_memory_history_impl)
    assert {"enabled", "max_entries", "stacks", "clear_history"} <= record.parameters.keys()
    assert next(iter(inspect.signature(torch.cuda.memory._dump_snapshot).parameters)) == "filename"
