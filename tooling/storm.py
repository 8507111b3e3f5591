"""Storms over inference servers: ``hatch run storm --seeds 20``, or ``python tooling/storm.py --seed 3 --events 25``.

Two trainer ranks and four servers live through seeded faults, as processes: killed, stopped, hung and lying servers, an
unreadable registry, a full /dev/shm. Afterwards the servers' logs and the trainer's records are checked; see
``weather/checker.py``. Exits 1 if a check fails, and keeps the records.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from weather.options import StormOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storms; 0 if every check passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = StormOptions()
    parser.add_argument("--seed", type=int, default=default.seed, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, one storm each")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="storms at a time; most of it waits"
    )
    parser.add_argument("--events", type=int, default=default.events)
    parser.add_argument("--versions", type=int, default=default.versions)
    parser.add_argument("--transport", choices=("shm", "disk", "distributed"), default=default.transport)
    limits = [name for name in vars(default) if name.endswith("_seconds")]
    for name in limits:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(default, name))
    parser.add_argument("--folder", type=Path, help="keep the records here; default: a temporary folder")
    given = parser.parse_args(arguments)
    options = StormOptions(
        seed=given.seed,
        events=given.events,
        versions=given.versions,
        transport=given.transport,
        **{name: getattr(given, name) for name in limits},
    )
    if problem := options.problem():
        parser.error(problem)
    from weather.seeds import run_seeds

    folder = given.folder or Path(tempfile.mkdtemp(prefix="archon-storm-"))
    start = time.monotonic()
    seeds = range(given.seed, given.seed + given.seeds)
    passed = run_seeds([replace(options, seed=seed) for seed in seeds], folder, jobs=given.jobs)
    print(f"{sum(passed)} of {len(passed)} storms passed in {time.monotonic() - start:.0f} s")
    if all(passed) and given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif not all(passed):
        print(f"records: {folder}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
