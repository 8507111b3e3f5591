"""Storms over asynchronous training: ``python tooling/async_storm.py --seed 3 --events 20``.

Collector, trainer and servers of a run are killed with SIGKILL at seeded moments, and the run is started again until it
finishes. With ``--ranks 2 --kinds rank collector server``, single ranks of the trainer are killed, too. Afterwards its
records are checked: every record consumed once and in order, no token older than the bound, every token's
log-probability that of the version on its label, nothing left behind; see ``async_weather/checker.py``.
With ``--staleness 0``, the weights must be those of the run without kills. Exits 1 if a check fails.
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

from async_weather.options import KINDS, RANK, AsyncStormOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storms; 0 if every check passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = AsyncStormOptions()
    parser.add_argument("--seed", type=int, default=default.seed, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, one storm each")
    parser.add_argument("--events", type=int, default=default.events)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--staleness", type=int, default=default.staleness)
    parser.add_argument("--servers", type=int, default=default.servers)
    parser.add_argument("--ranks", type=int, default=default.ranks, help="processes of the trainer")
    parser.add_argument("--dynamic-sampling", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, RANK), default=list(KINDS), help="what is killed")
    parser.add_argument(
        "--seconds", type=float, default=default.seconds, help="time until a storm counts as a deadlock"
    )
    parser.add_argument("--folder", type=Path, help="keep the records here; default: a temporary folder")
    given = vars(parser.parse_args(arguments))
    folder, seeds = given.pop("folder"), given.pop("seeds")
    options = AsyncStormOptions(**{**given, "kinds": tuple(given["kinds"])})
    from async_weather.storms import run_storms

    kept = folder or Path(tempfile.mkdtemp(prefix="archon-async-storm-"))
    start = time.monotonic()
    numbers = range(options.seed, options.seed + seeds)
    passed = run_storms([replace(options, seed=seed) for seed in numbers], kept)
    print(f"{sum(passed)} of {len(passed)} storms passed in {time.monotonic() - start:.0f} s")
    if all(passed) and folder is None:
        shutil.rmtree(kept, ignore_errors=True)
    elif not all(passed):
        print(f"records: {kept}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
