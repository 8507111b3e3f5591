"""The command behind ``check.py``: runs groups of checks, each in a separate process, and reports them.

A crash or a time limit costs one group its unfinished checks. The command prints a table and exits 1 unless every check
that ran has passed. With a file for JSON, it writes the results after every group, and also if nothing can run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpu import checkout
from gpu.apart import run_apart
from gpu.groups import GROUPS, PARTS, Group
from gpu.records import Context, Record, is_wanted
from gpu.table import as_json, render

DESCRIPTION = "Check numbers and speed on this machine's GPU, within eight minutes, without installing anything."
TIME_LIMIT, CPU_TIME_LIMIT = 480.0, 1800.0
"""Seconds for everything. On a CPU the compiler takes most of it."""


class CannotRunError(Exception):
    """No check can run on this machine; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; 0 when all that ran have passed, 1 when one has not, 2 when none could run."""
    options = _parser().parse_args(arguments)
    start = time.perf_counter()
    records: list[Record] = []
    machine: Mapping[str, object] = {}

    def write(problem: str = "") -> None:
        if options.json is not None:
            content = as_json(machine, records, time.perf_counter() - start)
            content |= {"problem": problem} if problem else {}
            options.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="archon-gpu-check-") as folder:
        try:
            _prepare(Path(folder), options)
            machine = _machine()
            context = _context(machine, Path(folder), options.cpu)
        except CannotRunError as problem:
            print(f"gpu-check: {problem}")
            write(str(problem))
            return 2
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None), flush=True)
        limit = options.time_limit or (CPU_TIME_LIMIT if options.cpu else TIME_LIMIT)
        only = tuple(pattern for pattern in options.only.split(",") if pattern)
        for group in _wanted(options.parts, only):
            found = run_apart(group, context, only, limit - (time.perf_counter() - start))
            records += found
            for record in found:
                print(f"{record.status:<8}{record.name}", flush=True)
            write()
        keep_trace(Path(folder), options.json)
    print(f"\n{render(records)}, {time.perf_counter() - start:.0f} s")
    return 0 if records and all(record.status in ("pass", "skipped") for record in records) else 1


def keep_trace(work: Path, json_file: Path | None) -> None:
    """Put the trace of a step, if there is one, beside the JSON file."""
    trace = work / "trace.json"
    if json_file is not None and trace.is_file():
        shutil.copy(trace, json_file.with_suffix(".trace.json"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpu-check", description=DESCRIPTION)
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--json", type=Path, help="write one record per check to this file")
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", default="", help="patterns of checks, such as 'numbers.engine/qwen3*', with commas")
    limits = f"{TIME_LIMIT:.0f}, on a CPU {CPU_TIME_LIMIT:.0f}"
    parser.add_argument("--time-limit", type=float, help=f"seconds for everything ({limits})")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of packages that this machine lacks")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"found {', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    return parts


def _wanted(parts: tuple[str, ...], only: tuple[str, ...]) -> Iterator[Group]:
    """The groups that have checks which were asked for: a pattern's part before the slash is theirs."""
    patterns = tuple(pattern.partition("/")[0] for pattern in only)
    return (group for group in GROUPS if group.part in parts and is_wanted(group.name, patterns))


def _prepare(work: Path, options: argparse.Namespace) -> None:
    """Set up this process's path and environment, which its children inherit."""
    checkout.write_metadata(work / "metadata")
    if options.wheels is not None:
        checkout.unpack_wheels(options.wheels, work / "wheels")
    checkout.put_on_path(*checkout.source_folders(), checkout.ROOT / "tooling", work / "metadata", work / "wheels")
    if missing := checkout.missing_packages():
        raise CannotRunError(
            f"found no {', '.join(missing)} on this machine, so no check can run; install it, or carry wheels along: "
            "pip download --no-deps NAME on another machine, then --wheels FOLDER here"
        )
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # What earlier runs compiled would hide how long it takes.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")


def _machine() -> Mapping[str, object]:
    """Queried in a separate process: this one must not hold memory of the GPU."""
    command = [
        sys.executable,
        "-P",
        "-c",
        "import json; from gpu.machine import describe; print(json.dumps(describe()))",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotRunError(f"torch does not work on this machine:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _context(machine: Mapping[str, object], work: Path, cpu: bool) -> Context:
    if not cpu and machine["device"] != "cuda":
        raise CannotRunError("found no CUDA device; --cpu runs the same checks in small on the CPU")
    return Context("cpu" if cpu else "cuda", work)
