"""All benchmarks, each in a separate process with its own time limit: about 35 minutes on two idle cores.

    hatch run bench [--only NAME] [--quick] [--json FILE] [--save-baseline]

Prints a table at the end. The JSON file is written after every benchmark and has a result for each, also for one that
failed. Exits 1 unless all that ran reached their bars.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benches import BENCHES, chosen
from records import Result, merged, read_results, to_json
from rich.console import Console
from running import run_benches
from table import print_table

BASELINE = Path(__file__).resolve().parent / "baseline.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 0 when none failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--save-baseline", action="store_true", help=f"replace what was measured in {BASELINE.name}")
    options = parser.parse_args(arguments)
    if options.save_baseline and options.quick:
        parser.error("found --quick with --save-baseline; a baseline needs all repetitions; leave out one of them")
    results = measure(parser, options)
    if options.save_baseline:
        save_baseline(results, BASELINE)
    return int(any(result.status in ("fail", "error", "timeout") for result in results))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of a run."""
    names = ", ".join(bench.name for bench in BENCHES)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"one of {names}; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: ratios are rough")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")


def measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Result]:
    """Run what ``options`` choose, and print and write the results."""
    try:
        benches = chosen(options.only)
    except ValueError as problem:
        parser.error(str(problem))
    console, started, results = Console(), time.monotonic(), []
    for result in run_benches(benches, quick=options.quick):
        results.append(result)
        console.print(f"{result.status:<8}{result.bench} ({result.seconds:.0f} s)", highlight=False)
        if options.json:
            options.json.write_text(to_json(results), encoding="utf-8")
    print_table(results, console)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    return results


def save_baseline(results: Sequence[Result], path: Path) -> None:
    """Replace the measured benchmarks in the baseline; benchmarks that failed or timed out keep their old figures."""
    usable = [result for result in results if result.status in ("pass", "fail")]
    old = read_results(path) if path.is_file() else []
    path.write_text(to_json(merged(old, usable)), encoding="utf-8")
    print(f"wrote {path.name}: {', '.join(result.bench for result in usable) or 'nothing new'}")


if __name__ == "__main__":
    sys.exit(main())
