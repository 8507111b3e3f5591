"""How long `archon verify qwen3 --all --world 4` takes: every dense layout of up to four ranks against one process.

The figure is wall time of the whole command, as a user waits for it, with nothing else running. Exits 1 when the bar is
missed or a layout differs.

    python tooling/bench/verify.py [--world 4] [--full] [--ranks-at-once 2 4 8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from records import Figure, Measurement
from report import Report, add_json_option

BAR_SECONDS = 150.0
"""On two cores, for layouts of up to ``BAR_WORLD`` ranks."""
BAR_WORLD = 4
PROGRAM = "from archon_core.cli.main import main; main()"


def run(arguments: list[str]) -> tuple[float, dict]:
    """Seconds and the JSON of one `archon verify`."""
    started = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, "verify", "qwen3", "--all", "--json", "-", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--ranks-at-once", type=int, nargs="*", default=[None], help="several are tried one by one")
    add_json_option(parser)
    options = parser.parse_args()
    report = Report("verify", options.json)
    common = ["--world", str(options.world), *(["--full"] if options.full else [])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores")
    first = None
    for at_once in options.ranks_at_once:
        arguments = common if at_once is None else [*common, "--ranks-at-once", str(at_once)]
        seconds, found = run(arguments)
        first = seconds if first is None else first
        cases = sum(len(layout["cases"]) for layout in found["layouts"])
        ranks = sum(layout["ranks"] * len(layout["cases"]) for layout in found["layouts"])
        print(
            f"ranks at once {at_once or 'by default'}: {seconds:.1f} s for {len(found['layouts'])} layouts, {cases} "
            f"cases, {1000 * seconds / ranks:.0f} ms per rank and case; {seconds / first:.2f} of the first"
        )
        if not found["passed"]:
            report.fail("some layout differs from one process")
        report.add(
            Measurement(
                f"world {options.world}{', full' if options.full else ''}, ranks at once {at_once or 'by default'}",
                seconds / BAR_SECONDS,
                "lower",
                Figure(seconds, "s"),
                Figure(BAR_SECONDS, "s"),
                "limit",
                1,
                bar=1.0 if options.world == BAR_WORLD and not options.full else None,
                absolute=True,
                details={"layouts": len(found["layouts"]), "cases": cases},
            )
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
