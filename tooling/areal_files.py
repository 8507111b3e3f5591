"""Dry runs of AReaL's example configurations.

    python tooling/areal_files.py EXAMPLES.jsonl           # prints file, outcome and reason
    python tooling/areal_files.py EXAMPLES.jsonl --store   # also stores the files as facts, for tests and documentation
    python tooling/areal_files.py                          # the stored files

A line of ``EXAMPLES.jsonl`` has ``file``, a path below AReaL's ``examples``, and ``config``, its keys and values.
``STORED`` lists every value once, with the numbers of the files that have it. Values that describe the authors'
machines are replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from archon_core.config.loading import explain_problems
from archon_core.errors import ArchonError
from archon_core.plugins import registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run

STORED = Path(__file__).resolve().parents[1] / "tests" / "data" / "areal_files.tsv"
HEADER = (
    "# The keys and values of example configurations of github.com/areal-project/AReaL at cbff54d64 (2026-08-22).\n"
    "# Written by tooling/areal_files.py --store. First the files by number, then option, value as JSON, and files.\n"
)
EMPTIED = ("scheduling_spec", "env_vars", "nfs_record_root", "fileroot")
"""Options whose values describe the authors' machines."""


@dataclass(frozen=True)
class Outcome:
    """The result of a dry run.

    Attributes:
        file: path below AReaL's ``examples``.
        outcome: ``runs``, ``accepted`` if the dry run exits with 0 but this machine lacks something, or ``refused``.
        reasons: the errors, or what this machine lacks; empty for a file that runs.
    """

    file: str
    outcome: str
    reasons: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """All reasons on one line."""
        return "; ".join(" ".join(reason.split()) for reason in self.reasons)


def outcomes(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Outcome]:
    """Dry runs of files, which may name one another."""
    with tempfile.TemporaryDirectory() as folder:
        for file, config in configs.items():
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for file in configs:
            yield dry_run(Path(folder, file), file)


def dry_run(path: Path, file: str) -> Outcome:
    """The result of ``archon train PATH --dry-run``."""
    try:
        loaded = load_config(path, allow_missing=True)
    except ArchonError as error:
        position = rf"{re.escape(str(path))}:\d+( \([^)]*\))?: "
        return Outcome(file, "refused", tuple(re.sub(position, "", text) for text in explain_problems(error)))
    plan = plan_run(loaded, registry())
    if plan.is_wrong:
        return Outcome(file, "refused", tuple(o.text for o in plan.obstacles if o.kind == "config"))
    needs = [f"{need.package.name} for {', '.join(need.purposes)}" for need in plan.needs]
    # Whether this machine has SLURM's programs is no property of the file, and the page is the same on all machines.
    needs += [obstacle.text for obstacle in plan.obstacles if "on this machine" not in obstacle.text]
    return Outcome(file, "accepted" if needs else "runs", tuple(needs))


def read_examples(path: Path) -> dict[str, dict[str, Any]]:
    """File -> configuration."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["file"]: row["config"] for row in map(json.loads, lines)}


def store(configs: Mapping[str, Mapping[str, Any]], path: Path = STORED) -> None:
    """Write the facts of all files."""
    files = {file: number for number, file in enumerate(configs, start=1)}
    having: dict[tuple[str, str], list[int]] = {}
    for file, config in configs.items():
        for option, value in _leaves(config):
            having.setdefault((option, json.dumps(value)), []).append(files[file])
    lines = [f"{number}\t{file}\n" for file, number in files.items()]
    lines += [f"{option}\t{value}\t{_ranges(numbers)}\n" for (option, value), numbers in having.items()]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")


def read_stored(path: Path = STORED) -> dict[str, dict[str, Any]]:
    """File -> configuration, from the stored facts."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    files = {int(row[0]): row[1] for row in rows if len(row) == 2}
    configs: dict[str, dict[str, Any]] = {file: {} for file in files.values()}
    for option, value, numbers in (row for row in rows if len(row) == 3):
        for number in _numbers(numbers):
            _put(configs[files[number]], option.split("."), json.loads(value))
    return configs


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        below = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, below)
        elif key in EMPTIED and not str(value).startswith("${"):
            yield below, [] if isinstance(value, list) else {} if isinstance(value, Mapping) else "runs"
        else:
            yield below, value


def _put(config: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        config = config.setdefault(key, {})
    config[keys[-1]] = value


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3,7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _numbers(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def main() -> int:
    """Print a line per file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("examples", nargs="?", type=Path, help="JSON lines; the stored files if left out")
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name}")
    arguments = parser.parse_args()
    configs = read_examples(arguments.examples) if arguments.examples else read_stored()
    if arguments.store:
        store(configs)
    found = list(outcomes(configs))
    width = max(len(row.file) for row in found)
    for row in found:
        print(f"{row.file:{width}}  {row.outcome:8}  {row.line}".rstrip())
    counts = {name: sum(row.outcome == name for row in found) for name in ("runs", "accepted", "refused")}
    print(f"{len(found)} files: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
