"""Start-up: how long `archon plugins` and `archon --help` take, and what `archon train` does before its first update.

    hatch run bench-startup [--rounds 9] [--train-rounds 3]

Listings are timed by turns with a bare interpreter, and the medians count; each has a bar in seconds.

`archon train` runs one step of ``examples/grpo_arithmetic.yaml`` on one and on two ranks. ``startup_events`` times its
phases in every process; what counts is the time from the command until the first update has ended, beside the time in
which a fresh interpreter imports torch and transformers, which no run can do without. Details are the seconds of each
phase without the phases inside it, in the process that updates first. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from records import Figure, Measurement
from report import Report, add_json_option

ROOT = Path(__file__).resolve().parents[2]
EVENTS = Path(__file__).resolve().parent / "startup_events"
LIMIT = 0.4
"""Seconds for a listing."""
PROGRAM = ("-c", "from archon_core.cli.main import main; main()")
LISTINGS = (("plugins",), ("--help",))
BARE = "a bare interpreter"
LAYOUTS = ("d1", "d2")
SHORT = (
    "warm_start.steps=0",
    "trainer.max_steps=1",
    "trainer.eval_before_train=false",
    "trainer.eval_every=0",
    "trainer.save_every=0",
    "trainer.verify_export=false",
    "data.batch_size=16",
    # Random weights earn nothing: sampling on until some group has an advantage is not start-up.
    "actor.dynamic_sampling=false",
)
OTHER = "other work"


def seconds_of(command: Sequence[str]) -> float:
    """Wall time of a command, which must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def listings(rounds: int, report: Report) -> None:
    """Time the listings by turns with a bare interpreter."""
    commands = {BARE: [sys.executable, "-c", "pass"]}
    commands |= {f"archon {' '.join(listing)}": [sys.executable, *PROGRAM, *listing] for listing in LISTINGS}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds = seconds_of(command)
            if number:  # the first may write byte code and fill the page cache
                times[name].append(seconds)
    bare = statistics.median(times.pop(BARE))
    for name, found in times.items():
        ours = Figure(statistics.median(found), "s")
        limit = Figure(LIMIT, "s")
        report.add(Measurement(name, ours.value / LIMIT, "lower", ours, limit, "limit", rounds, bar=1.0, absolute=True))
        report.add(Measurement(f"{name}, relative", ours.value / bare, "lower", ours, Figure(bare, "s"), BARE, rounds))


def first_update(layout: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds from the command to the end of the first update, and seconds by phase of the process that made it."""
    events = folder / f"{layout}.jsonl"
    events.unlink(missing_ok=True)
    given = [f"cluster.fileroot={folder / 'runs'}", f"actor.backend=archon:{layout}", *SHORT, "--restart"]
    command = [sys.executable, *PROGRAM, "train", str(ROOT / "examples/grpo_arithmetic.yaml"), *given]
    path = os.pathsep.join([str(EVENTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = folder / f"{layout}.log"
    started = time.time()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "ARCHON_STARTUP_EVENTS": str(events)},
        )
    if done.returncode:
        raise SystemExit(f"archon train failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
    rows = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    return phases_until_update(rows, started)


def phases_until_update(rows: Sequence[dict], started: float) -> tuple[float, dict[str, float]]:
    """The same from the recorded phases of all processes.

    Args:
        rows: see ``startup_events``.
        started: when the command was started, in seconds since the epoch.
    """
    update = min((row for row in rows if row["phase"] == "update"), key=lambda row: row["end"])
    end = update["end"]
    own = [row for row in rows if row["pid"] == update["pid"] and row["end"] <= end]
    seconds: dict[str, float] = {}
    for row in own:
        seconds[row["phase"]] = seconds.get(row["phase"], 0.0) + row["end"] - row["begin"] - row["inside"]
    # In a rank: everything that its parent did first.
    before = min(row["begin"] for row in own) - started
    seconds["before this process"] = before
    seconds[OTHER] = end - started - sum(seconds.values())
    for phase in ("configuration", "plan"):
        seconds[f"times {phase}"] = sum(row["phase"] == phase for row in rows)
    return end - started, {phase: round(value, 2) for phase, value in sorted(seconds.items())}


def training(rounds: int, report: Report) -> None:
    """Time `archon train` to its first update by turns with the imports that it needs."""
    imports = [sys.executable, "-c", "import torch, transformers.configuration_utils"]
    floors: list[float] = []
    found: dict[str, list[tuple[float, dict[str, float]]]] = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(imports)
        for _ in range(rounds):
            floors.append(seconds_of(imports))
            for layout in LAYOUTS:
                found[layout].append(first_update(layout, Path(folder)))
    floor = statistics.median(floors)
    for layout, runs in found.items():
        seconds, phases = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        report.add(
            Measurement(
                f"archon train to its first update, {layout}",
                seconds / floor,
                "lower",
                Figure(seconds, "s"),
                Figure(floor, "s"),
                "importing torch and transformers",
                rounds,
                details=phases,
            )
        )
        print("  " + ", ".join(f"{phase} {value:g}" for phase, value in phases.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of the listings")
    parser.add_argument("--train-rounds", type=int, default=5, help="of the training runs; 0 leaves them out")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("startup", options.json)
    listings(options.rounds, report)
    if options.train_rounds:
        training(options.train_rounds, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
