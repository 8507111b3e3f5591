"""The results of ``archon verify`` as JSON. docs/verify.md describes the format; ``SCHEMA`` is its version."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from archon_core.cli.console import print_json
from archon_core.errors import ConfigError
from archon_testing.cases import Case
from archon_testing.diagnosis import Diagnosis, Finding
from archon_testing.verdicts import LIMITS, NOTHING, Deviation, Verdict
from archon_testing.verification import LayoutReport, Plan

SCHEMA = 2
"""Incremented if a field changes its meaning or is removed; new fields may be added without."""

FINDINGS = ("module", "parameter", "loss", "norm", "weight", "state", "export")
"""What a diagnosis may have found."""


def json_report(plan: Plan, reports: Sequence[LayoutReport], *, seconds: float) -> dict[str, Any]:
    """All results as JSON types.

    Args:
        plan: the request.
        reports: the result of each layout.
        seconds: duration.
    """
    return {
        "schema": SCHEMA,
        "versions": {name: _version(name) for name in ("archon-core", "archon-testing", "torch")},
        "model": {
            "name": plan.model.spec.name,
            "config": dict(plan.model.entries),
            "made_small": list(plan.model.changes),
            "remarks": list(plan.model.remarks),
        },
        "seed": plan.seed,
        "design": "full" if plan.design.full else "covering",
        "limits": dict(LIMITS),
        "passed": all(report.passed for report in reports),
        "seconds": round(seconds, 3),
        "left_out": [{"layout": layout, "reason": reason} for layout, reason in plan.left_out.items()],
        "layouts": [_layout(report) for report in reports],
    }


def _layout(report: LayoutReport) -> dict[str, Any]:
    return {
        "layout": str(report.layout),
        "ranks": report.layout.layout.world_size,
        "outcome": report.outcome,
        "refusal": report.refusal or None,
        "crash": report.crash or None,
        "cases": [_verdict(verdict) for verdict in report.verdicts],
        "diagnoses": [_diagnosis(diagnosis) for diagnosis in report.diagnoses],
        "undiagnosed": report.undiagnosed or None,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    comparison = verdict.comparison
    return {
        **_case(verdict.case),
        "passed": verdict.passed,
        "errors": {} if comparison is None else {q: _deviation(d) for q, d in comparison.worst.items()},
        "failed": [] if comparison is None else list(comparison.failed),
        "problems": [] if comparison is None else list(comparison.problems),
    }


def _case(case: Case) -> dict[str, Any]:
    return {
        "check": case.check,
        "dtype": case.compute_dtype,
        "variant": case.variant,
        "n_mbs": case.n_mbs,
        "recompute": case.recompute,
        "cp_style": case.cp_style,
        "prefixes": case.prefixes,
        "exports": case.exports,
        "resumed_on": case.resumed_on or None,
    }


def _deviation(deviation: Deviation) -> dict[str, Any] | None:
    if deviation.name == NOTHING:
        return None
    return {"error": _number(deviation.error), "name": deviation.name, "step": deviation.step}


def _diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    found = {name: getattr(diagnosis, name) for name in FINDINGS}
    return {
        **_case(diagnosis.case),
        **{name: None if finding is None else _finding(finding) for name, finding in found.items()},
        "one_process_differs": diagnosis.alone,
        "recomputation": diagnosis.recomputed,
        "step": diagnosis.step,
        "modules_compared": diagnosis.n_modules,
        "parameters": diagnosis.n_parameters,
        "parameters_wrong": diagnosis.n_wrong,
        "text": diagnosis.lines,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "error": _number(finding.error),
        "cause": finding.cause.kind,
        "axes": list(finding.cause.axes),
        "factor": None if finding.cause.factor is None else _number(finding.cause.factor),
        "candidates": [list(axes) for axes in finding.cause.candidates],
        "ranks": list(finding.ranks),
        "where": dict(finding.where or {}),
        "experts": list(finding.experts),
        "first_position": finding.first_position,
    }


def check_writable(file: str) -> None:
    """Check before minutes of work that ``file`` is writable, or ``-``; creates nothing. Raises ConfigError."""
    path = Path(file)
    if file != "-" and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ConfigError(f"--json: cannot write {file!r}; name a file in an existing, writable folder")


def write_json(content: object, file: str) -> None:
    """Write to ``file``, or to standard output for ``-``. Raises ConfigError."""
    if file == "-":
        print_json(content)
        return
    try:
        Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json: cannot write {file!r} ({error}); name a file in an existing, writable folder"
        ) from error


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else "inf"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
