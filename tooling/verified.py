"""Runs ``archon verify`` on models and keeps a summary for docs/models.md.

``python tooling/verified.py qwen3 --world 4`` runs the layouts of up to four ranks. ``--variant lora``
verifies adapters in place of the models' own weights. A run that fails changes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tooling/generated/verified.json"
WEIGHTS, LORA = "weights", "lora"
"""What a run verifies."""


def summary(report: Mapping[str, Any], world: int) -> dict[str, Any]:
    """The facts of a report (``archon verify --json``) that the table shows."""
    cases = [case for layout in report["layouts"] for case in layout["cases"]]
    dtype = "float64" if any(case["dtype"] == "float64" for case in cases) else "float32"
    errors = [
        found["error"]
        for case in cases
        if case["dtype"] == dtype
        for quantity in ("loss", "gradient norm", "gradients", "weights")
        if (found := case["errors"].get(quantity)) is not None and (quantity != "weights" or dtype == "float64")
    ]
    return {
        "world": world,
        "layouts": len(report["layouts"]),
        "cases": len(cases),
        "dtype": dtype,
        "error": float(f"{max(errors):.0e}"),
        "torch": report["versions"]["torch"].partition("+")[0],
    }


def verify(model: str, world: int, what: str, time_limit: float) -> dict[str, Any]:
    """Run the command. Raises SystemExit if a layout differs."""
    variant = ["--variant", "lora"] if what == LORA else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = ["archon", "verify", model, "--all", "--world", str(world), *variant]
        command += ["--time-limit", str(time_limit), "--json", str(file)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{' '.join(command[:-2])} failed; {RESULTS.relative_to(ROOT)} is unchanged")
        return summary(json.loads(file.read_text(encoding="utf-8")), world)


def main() -> int:
    """Verify the models of the command line, and add their results to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--variant", choices=[LORA])
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds per case, as of archon verify")
    given = parser.parse_args()
    for model in given.models:
        what = given.variant or WEIGHTS
        found = verify(model, given.world, what, given.time_limit)
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        results[model] = {**results.get(model, {}), what: found}
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
