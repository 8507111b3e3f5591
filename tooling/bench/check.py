"""Compares benchmarks with the committed baseline, and names every ratio that is worse by more than 15%.

    hatch run bench-check                     # measures first
    hatch run bench-check --results FILE      # compares a file of `hatch run bench --json FILE`
    hatch run bench-check --only head --quick

Exits 1 if a ratio is worse or a benchmark failed to run, 2 if nothing can be compared. Absolute figures are compared on
the same machine only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from baseline import compare, not_compared
from records import read_results
from run import BASELINE, add_run_options, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; the exit status."""
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
    compared = list(compare(results, baseline))
    worse = [one for one in compared if one.is_regression]
    for text in not_compared(results, baseline):
        print(f"not compared: {text}")
    for one in worse:
        print(f"worse: {one.describe()}")
    broken = [result.bench for result in results if result.status in ("error", "timeout")]
    print(f"{len(worse)} of {len(compared)} compared ratios are worse than the baseline's")
    if broken:
        print(f"did not run to the end: {', '.join(broken)}")
    if not compared and not broken:
        return 2
    return int(bool(worse or broken))


if __name__ == "__main__":
    sys.exit(main())
