"""The command behind ``check.py``: runs groups of checks, each in a separate process, and reports them.

A crash costs one check. A group that takes too long costs its unfinished checks, and none of another group. The command
prints a table and exits 1 unless every check that ran has passed. With a file for JSON, it writes the results after
every group, and also if nothing can run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpu import checkout
from gpu.apart import run_apart
from gpu.groups import GROUPS, PARTS, TIME_LIMIT, Group, ends_of, time_factor
from gpu.records import Context, Record, is_wanted
from gpu.table import as_json, render

DESCRIPTION = "Check numbers and speed on this machine's GPU, within eight minutes, without installing anything."
CPU_TIME_LIMIT = 1800
"""Seconds for everything on a CPU, where the compiler takes most of it."""

LOG_BYTES = 2**18
"""Of a group's output, what is kept beside the JSON file."""

TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""They have precedence over what a process sets."""

MACHINE_SECONDS = 120
"""After which a machine that does not describe itself cannot run checks."""


class CannotRunError(Exception):
    """No check can run on this machine; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; 0 when all that ran have passed, 1 after a failure or Ctrl-C, 2 when none could run."""
    options = _parser().parse_args(arguments)
    start = time.perf_counter()
    records: list[Record] = []
    machine: Mapping[str, object] = {}
    is_interrupted = False

    def write(problem: str = "") -> None:
        if options.json is not None:
            content = as_json(machine, records, time.perf_counter() - start)
            content |= {"problem": problem} if problem else {}
            options.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    # A compiler's worker may still write there.
    with tempfile.TemporaryDirectory(prefix="archon-gpu-check-", ignore_cleanup_errors=True) as folder:
        try:
            _prepare(Path(folder), options)
            machine = _machine()
            context = _context(machine, Path(folder), options.cpu)
        except CannotRunError as problem:
            print(f"gpu-check: {problem}")
            write(str(problem))
            return 2
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None), flush=True)
        try:
            for found in _run(context, options, start):
                records += found
                for record in found:
                    print(f"  {record.status:<8}{record.name}", flush=True)
                write()
                if options.json is not None:
                    keep_files(Path(folder), options.json)
        except KeyboardInterrupt:
            is_interrupted = True
            write("interrupted")
            print("\ninterrupted; the results so far:")
    if options.only and not records and not is_interrupted:
        names = ", ".join(group.name for group in GROUPS)
        problem = (
            f"--only {options.only}: found no such check; allowed are names such as numbers.engine/qwen3-fp32, with "
        )
        problem += f"* for any text; groups are {names}"
        print(f"gpu-check: {problem}")
        write(problem)
        return 2
    print(f"\n{render(records)}, {time.perf_counter() - start:.0f} s")
    have_passed = records and all(record.status in ("pass", "skipped") for record in records)
    return 0 if have_passed and not is_interrupted else 1


def _run(context: Context, options: argparse.Namespace, start: float) -> Iterator[list[Record]]:
    """The records of one wanted group after the other."""
    only = tuple(pattern for pattern in options.only.split(",") if pattern)
    groups = list(_wanted(options.parts, only))
    limit = options.time_limit or (CPU_TIME_LIMIT if options.cpu else TIME_LIMIT)
    begin = time.perf_counter() - start
    ends = ends_of(groups, begin, limit) if context.on_gpu else [limit] * len(groups)
    with _reference_ahead(context, groups):
        for group, end in zip(groups, ends, strict=True):
            left, check_limit = end - (time.perf_counter() - start), 0
            if context.on_gpu:
                check_limit = round(group.check_limit * time_factor(groups, begin, limit))
            print(f"{group.name}, at most {max(left, 0):.0f} s", flush=True)
            yield run_apart(group, context, only, left, check_limit=check_limit)


@contextmanager
def _reference_ahead(context: Context, groups: Sequence[Group]) -> Iterator[None]:
    """Compute the reference on the CPU beside the first groups, which use the GPU."""
    if not context.on_gpu or not any(group.has_reference for group in groups):
        yield
        return
    call = f"from gpu.numerics.oracle import compute_ahead; compute_ahead({str(context.work)!r}, {context.device!r})"
    with (context.work / "reference.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", call],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "4", **os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def keep_files(work: Path, json_file: Path) -> None:
    """Put the end of every group's output beside the JSON file, and the trace of a step, if there is one."""
    logs = [
        f"== {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-LOG_BYTES:]}\n"
        for log in sorted(work.glob("*.log"), key=lambda log: log.stat().st_mtime)
    ]
    json_file.with_suffix(".log").write_text("".join(logs), encoding="utf-8")
    trace = work / "trace.json.gz"
    if trace.is_file():
        shutil.copy(trace, json_file.with_suffix(".trace.json.gz"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpu-check", description=DESCRIPTION)
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--json", type=_json_file, help="write one record per check to this file")
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", default="", help="patterns of checks, such as 'numbers.engine/qwen3*', with commas")
    limits = f"{TIME_LIMIT}, on a CPU {CPU_TIME_LIMIT}"
    parser.add_argument("--time-limit", type=_seconds, help=f"seconds for everything ({limits})")
    parser.add_argument("--wheels", type=_wheels, help="folder with wheels of packages that this machine lacks")
    return parser


def _json_file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"found {text}; allowed is a file in a folder that exists, such as gpu.json")
    return path


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}; allowed is a positive number of seconds")
    return seconds


def _wheels(text: str) -> Path:
    if not list(Path(text).glob("*.whl")):
        raise argparse.ArgumentTypeError(f"found no wheel in {text}; allowed is a folder that pip download has filled")
    return Path(text)


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
    for variable in TF32_VARIABLES:
        os.environ.pop(variable, None)
    # Without a network, looking up this machine's own address can take seconds, or fail.
    if loopback := next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_DEBUG", "WARN")


def _machine() -> Mapping[str, object]:
    """Queried in a separate process: this one must not hold memory of the GPU."""
    command = [
        sys.executable,
        "-P",
        "-c",
        "import json; from gpu.machine import describe; print(json.dumps(describe()))",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MACHINE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(
            f"found no answer from torch within {MACHINE_SECONDS} s; check the GPU with nvidia-smi, or use --cpu"
        ) from error
    if done.returncode:
        raise CannotRunError(f"torch does not work on this machine:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _context(machine: Mapping[str, object], work: Path, cpu: bool) -> Context:
    if not cpu and machine["device"] != "cuda":
        raise CannotRunError("found no CUDA device; --cpu runs the same checks in small on the CPU")
    return Context("cpu" if cpu else "cuda", work)
