"""The command behind ``check.py``: groups of checks, each in a process of its own, and what comes of them.

A crash or a time limit costs one group the checks that had not ended. The command prints a table, writes JSON where
asked, and exits 1 unless every check that ran has passed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu import checkout
from gpu.groups import GROUPS, PARTS, Group
from gpu.journal import read_journal, run_checks
from gpu.records import Context, Record, Status, is_wanted
from gpu.table import as_json, render

DESCRIPTION = "Check numbers and speed on this machine's GPU, within eight minutes, without installing anything."
TIME_LIMIT = 480.0
LAST_LINES = 15
"""Of a process's output, shown when it did not end in order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; 0 when all that ran have passed, 1 when one has not, 2 when none could run."""
    options = _parser().parse_args(arguments)
    if options.group is not None:
        return _run_group(options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="archon-gpu-check-") as folder:
        work = Path(folder)
        checkout.write_metadata(work / "metadata")
        if options.wheels is not None:
            checkout.unpack_wheels(options.wheels, work / "wheels")
        checkout.put_on_path(*checkout.source_folders(), checkout.ROOT / "tooling", work / "metadata", work / "wheels")
        missing = checkout.missing_packages()
        if missing:
            print(
                f"gpu-check: found no {', '.join(missing)} on this machine, so no check can run; install it, or carry "
                "wheels along: pip download --no-deps NAME on another machine, then --wheels FOLDER here"
            )
            return 2
        if options.cpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # What earlier runs compiled would hide how long it takes.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
        machine = _machine()
        device = "cpu" if options.cpu else str(machine["device"])
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None), flush=True)
        if device == "cpu" and not options.cpu:
            print("gpu-check: found no CUDA device; --cpu runs the same checks in small on the CPU")
            return 2
        records = _run_groups(options, work, device, start)
    seconds = time.perf_counter() - start
    print("\n" + render(records) + f", {seconds:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(machine, records, seconds), indent=2) + "\n", encoding="utf-8")
    return 0 if records and all(record.status in ("pass", "skipped") for record in records) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpu-check", description=DESCRIPTION)
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--json", type=Path, help="write one record per check to this file")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; both by default")
    parser.add_argument("--only", default="", help="patterns of checks, such as 'numbers.engine/qwen3*', with commas")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds for everything (480)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks")
    parser.add_argument("--group", choices=[group.name for group in GROUPS], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    return parser


def _patterns(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(pattern for pattern in options.only.split(",") if pattern)


def _run_groups(options: argparse.Namespace, work: Path, device: str, start: float) -> list[Record]:
    parts, only = options.parts.split(","), _patterns(options)
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--parts: found {', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    records: list[Record] = []
    for group in GROUPS:
        # A pattern names checks; a group has some of these if its name fits the part before the slash.
        if group.part in parts and is_wanted(group.name, tuple(pattern.partition("/")[0] for pattern in only)):
            left = options.time_limit - (time.perf_counter() - start)
            found = _run_apart(group, work, device, only, left)
            records += found
            for record in found:
                print(f"{record.status:<8}{record.name}", flush=True)
    return records


def _run_apart(group: Group, work: Path, device: str, only: tuple[str, ...], left: float) -> list[Record]:
    """The records of a group that runs in a process of its own."""
    if left < 1:
        return [Record(group.name, "timeout", message="not begun: --time-limit is used up")]
    journal, output = work / f"{group.name}.jsonl", work / f"{group.name}.log"
    limit = min(left, group.limit if device == "cuda" else left)
    command = [
        sys.executable,
        "-P",
        "-m",
        "gpu.command",
        "--group",
        group.name,
        "--work",
        str(work),
        "--journal",
        str(journal),
    ]
    command += ["--only", ",".join(only), *(["--cpu"] if device == "cpu" else [])]
    with output.open("w", encoding="utf-8") as log:
        # A session of its own, so that its children end with it.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        end: Status | None = None
        reason = ""
        try:
            code = process.wait(limit)
            if code:
                end, reason = "error", f"its process ended with exit code {code}\n{_tail(output)}"
        except subprocess.TimeoutExpired:
            process.terminate()  # has it write where it is
            time.sleep(1)
            end, reason = "timeout", f"stopped after {limit:.0f} s\n{_tail(output)}"
        finally:
            _end_session(process)
    return read_journal(group.name, journal, end=end, reason=reason)


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the processes that were started together."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


def _run_group(options: argparse.Namespace) -> int:
    """In a group's own process."""
    faulthandler.register(signal.SIGTERM, all_threads=False)
    group = next(group for group in GROUPS if group.name == options.group)
    context = Context("cpu" if options.cpu else "cuda", options.work)
    _compute_exactly()
    run_checks(group.name, list(group.checks(context)), options.journal, _patterns(options))
    sys.stdout.flush()
    # Threads of torch and NCCL may hold up an orderly end; everything that counts is on disk.
    os._exit(0)


def _compute_exactly() -> None:
    """No TF32 in products of fp32, whatever this machine's environment says."""
    import torch

    torch.set_float32_matmul_precision("highest")


def _machine() -> dict[str, object]:
    """Asked in a process of its own: this one must not hold memory of the GPU."""
    command = [
        sys.executable,
        "-P",
        "-c",
        "import json; from gpu.machine import describe; print(json.dumps(describe()))",
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
