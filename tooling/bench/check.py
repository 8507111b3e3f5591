"""Compares benchmarks with the committed baseline, and names every ratio that is worse by more than 15%.

    hatch run bench-check                     # measures first
    hatch run bench-check --results FILE      # compares a file of `hatch run bench --json FILE`
    hatch run bench-check --only head --quick

Exits 1 if a ratio is worse, or a benchmark failed to run. Absolute figures are compared on the same machine only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from baseline import not_compared, regressions
from records import read_results
from run import BASELINE, add_run_options, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; 0 when nothing is worse, else 1; 2 when there is nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--results", type=Path, metavar="FILE", help="compare these results instead of measuring")
    parser.add_argument("--baseline", type=Path, metavar="FILE", default=BASELINE)
    options = parser.parse_args(arguments)
    try:
        baseline = read_results(options.baseline)
        results = read_results(options.results) if options.results else measure(parser, options)
    except (OSError, ValueError) as problem:
        print(f"bench-check: {problem}", file=sys.stderr)
        return 2
    worse = list(regressions(results, baseline))
    for text in not_compared(results, baseline):
        print(f"not compared: {text}")
    for one in worse:
        print(f"worse: {one.describe()}")
    broken = [result.bench for result in results if result.status in ("error", "timeout")]
    compared = sum(len(result.measurements) for result in results)
    print(
        f"{len(worse)} of {compared} ratios are worse than the baseline" + (f"; {broken} did not run" if broken else "")
    )
    return int(bool(worse or broken))


if __name__ == "__main__":
    sys.exit(main())
