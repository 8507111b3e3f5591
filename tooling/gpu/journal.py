"""The journal of a group of checks, written while they run, so that a crash or a time limit loses no finished check.

One JSON object per line: the plan, then the beginning of every check and its record. The process that runs the checks
writes it; the one that started that process reads it, and adds the record of a check that ended its process.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.records import Check, Record, Skipped, Status, is_wanted

LINES_OF_TRACEBACK = 12


def run_checks(
    group: str,
    checks: Sequence[Check],
    path: Path,
    only: tuple[str, ...],
    *,
    check_limit: int = 0,
    is_usable: Callable[[], bool] = lambda: True,
) -> bool:
    """Run the checks of ``group`` that ``only`` asks for and that have no record yet, one after the other, each
    whatever became of those before.

    Args:
        check_limit: seconds after which SIGALRM interrupts a check; 0 for none.
        is_usable: called after an error: whether further checks can run in this process.

    Returns:
        Whether they can.
    """
    wanted = [check for check in checks if is_wanted(f"{group}/{check.name}", only)]
    known = known_checks(path)
    if not known:
        _append(path, {"plan": [f"{group}/{check.name}" for check in wanted]})
    for check in wanted:
        name = f"{group}/{check.name}"
        if name in known:
            continue
        _append(path, {"begun": name})
        if check_limit:
            signal.alarm(check_limit)
        record = _record(name, check)
        if check_limit:
            signal.alarm(0)
        _append(path, {"record": asdict(record)})
        if record.status == "error" and not is_usable():
            return False
    return True


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


def known_checks(path: Path) -> set[str]:
    """The checks that have a record."""
    return {line["record"]["name"] for line in _lines(path) if "record" in line}


def unfinished_checks(path: Path) -> list[str]:
    """The planned checks without a record, in order."""
    known = known_checks(path)
    return [name for line in _lines(path) for name in line.get("plan", ()) if name not in known]


def close_running(path: Path, status: Status, reason: str) -> bool:
    """Record the check that was running when its process ended. Whether there was one."""
    known = known_checks(path)
    running = [line["begun"] for line in _lines(path) if "begun" in line and line["begun"] not in known]
    for name in running:
        _append(path, {"record": asdict(Record(name, status, message=reason))})
    return bool(running)


def read_journal(group: str, path: Path, *, end: Status | None, reason: str) -> list[Record]:
    """The records of a group.

    Args:
        end: how its last process ended: ``None`` in order, ``timeout`` or ``error``.
        reason: the same in words.
    """
    lines = _lines(path)
    records = {line["record"]["name"]: Record(**line["record"]) for line in lines if "record" in line}
    if end is None:
        return list(records.values())
    begun = [line["begun"] for line in lines if "begun" in line]
    unfinished = unfinished_checks(path)
    if not unfinished:
        # Before its first check, or after its last one.
        return [*records.values(), Record(group, end, message=reason)]
    for name in unfinished:
        found = reason if name in begun else f"not reached: {reason.partition(chr(10))[0]}"
        records[name] = Record(name, end, message=found)
    return list(records.values())


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a journal. Skips a line that a process did not finish before it was killed."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = []
    for text in filter(None, texts):
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        # On a new line, whatever a process left that was killed while it wrote.
        file.write(f"\n{json.dumps(line)}\n")
