"""The journal of a group of checks, written while they run, so that a crash or a time limit loses no finished check.

One JSON object per line: the plan, then the beginning of every check and its record. The process that runs the checks
writes it; the one that started that process reads it.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.records import Check, Record, Skipped, Status, is_wanted

LINES_OF_TRACEBACK = 12


def run_checks(group: str, checks: Sequence[Check], path: Path, only: tuple[str, ...]) -> None:
    """Run the checks of ``group`` that ``only`` asks for, one after the other, each whatever became of those before."""
    wanted = [check for check in checks if is_wanted(f"{group}/{check.name}", only)]
    _append(path, {"plan": [f"{group}/{check.name}" for check in wanted]})
    for check in wanted:
        name = f"{group}/{check.name}"
        _append(path, {"begun": name})
        _append(path, {"record": asdict(_record(name, check))})


def _record(name: str, check: Check) -> Record:
    start = time.perf_counter()
    try:
        outcome = check.run()
    except Skipped as reason:
        return Record(name, "skipped", seconds=time.perf_counter() - start, message=str(reason))
    except Exception as error:
        stack = "\n".join(traceback.format_exc().strip().splitlines()[-LINES_OF_TRACEBACK:])
        message = f"{type(error).__name__}: {error}\n{stack}"
        return Record(name, "error", seconds=time.perf_counter() - start, message=message)
    return Record.of(name, outcome, time.perf_counter() - start)


def read_journal(group: str, path: Path, *, end: Status | None, reason: str) -> list[Record]:
    """The records of a group's process.

    Args:
        end: how it ended: ``None`` in order, ``timeout`` or ``error``.
        reason: the same in words.
    """
    lines: list[Mapping[str, Any]] = []
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    records = {line["record"]["name"]: Record(**line["record"]) for line in lines if "record" in line}
    if end is None:
        return list(records.values())
    plan = next((line["plan"] for line in lines if "plan" in line), [])
    begun = [line["begun"] for line in lines if "begun" in line]
    unfinished = [name for name in plan if name not in records]
    if not unfinished:
        # Before its first check, or after its last one.
        return [*records.values(), Record(group, end, message=reason)]
    for name in unfinished:
        found = reason if name in begun else f"not reached: {reason.partition(chr(10))[0]}"
        records[name] = Record(name, end, message=found)
    return list(records.values())


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
