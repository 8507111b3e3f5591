"""Reads the traces that profiled steps leave in a run folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def ranges_of(trace: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of each range -> its occurrences, with start and end in microseconds."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.get("cat") == "user_annotation":
            found.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def assert_within(ranges: dict[str, list[tuple[float, float]]], outer: str, *inner: str) -> None:
    """Every occurrence of the ``inner`` ranges lies in one of ``outer``; both occur."""
    for name in inner:
        assert ranges.get(name), f"{name} is not among {sorted(ranges)}"
        for start, end in ranges[name]:
            assert any(first <= start and end <= last for first, last in ranges[outer]), f"{name} is not in {outer}"
