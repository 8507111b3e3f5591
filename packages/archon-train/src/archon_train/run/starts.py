"""Records every start of a run in its folder: command, versions, machine, git commit, and how it ended."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from archon_core.errors import DataError
from archon_core.run_files.starts import STARTS, Ending, Start, read_starts, render_starts
from archon_engine.checkpoint.publication import publish_text

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "vllm", "sglang")
"""Distributions whose versions are recorded, beside those of Archon."""

MOST_SECONDS = 5
"""Time limit of each program that describes the machine."""


@contextmanager
def recorded_start(folder: Path, *, resumed_from: int | None, interrupted: Callable[[], bool]) -> Iterator[None]:
    """Add this start to the run's, and its end when the block ends.

    Args:
        folder: the run folder.
        resumed_from: step of the checkpoint that it continues; ``None`` for a new run.
        interrupted: whether the user asked to stop; called at the end.
    """
    earlier = [] if resumed_from is None else _earlier(folder)
    start = Start(_now(), resumed_from, shlex.join(sys.argv), describe_environment())

    def end(ending: Ending, error: str = "") -> None:
        last = (_earlier(folder) or [start])[-1]  # with the number of steps
        _write(folder, [*earlier, replace(last, ended=_now(), ending=ending, error=error)])

    _write(folder, [*earlier, start])
    try:
        yield
    except KeyboardInterrupt:
        end("interrupted")
        raise
    except BaseException as error:
        end("failed", str(error) or type(error).__name__)
        raise
    end("interrupted" if interrupted() else "finished")


def record_total_steps(folder: Path, total: int) -> None:
    """Add the number of training steps of the whole run to its last start, for those who watch it."""
    if starts := _earlier(folder):
        _write(folder, [*starts[:-1], replace(starts[-1], total_steps=total)])


def describe_environment() -> dict[str, str]:
    """Versions, machine and git commit of this process: name -> text."""
    found = {
        "machine": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    # A program, because torch would create a context on the device.
    if gpus := _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]):
        names = gpus.splitlines()
        found["GPUs"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    found["python"] = platform.python_version()
    ours = {one.name for one in importlib.metadata.distributions() if (one.name or "").startswith("archon-")}
    for package in (*PACKAGES, *sorted(ours)):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit := _output(["git", "rev-parse", "HEAD"]):
        changed = _output(["git", "status", "--porcelain", "--untracked-files=no"])
        found["git"] = commit + (" with uncommitted changes" if changed else "")
    return found


def _output(command: Sequence[str]) -> str:
    """What a program prints; empty if it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=MOST_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _write(folder: Path, starts: list[Start]) -> None:
    publish_text(folder / STARTS, render_starts(starts))


def _earlier(folder: Path) -> list[Start]:
    try:
        return read_starts(folder)
    except DataError:  # a damaged record must not keep a run from resuming
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
