"""Compares the model on a layout with one process."""

from __future__ import annotations

from collections.abc import Sequence

from archon_testing.cases import Case
from archon_testing.model_checks.built import require
from archon_testing.oracle import Oracle, Outcome


def check_layout(cases: Sequence[Case], oracle: Oracle) -> None:
    """Run cases of one layout; failures are reported with their diagnoses."""
    verdicts = oracle.verify(cases)
    refused = [verdict.refusal for verdict in verdicts if verdict.refusal]
    require(not refused, f"the engine refuses a layout that the model declares: {refused[0] if refused else ''}")
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return
    lines = []
    for verdict in failed:
        case, comparison = verdict.case, verdict.comparison
        assert comparison is not None, "what is not refused was compared"
        wrong = [f"{quantity} {comparison.worst[quantity]}" for quantity in comparison.failed]
        lines.append(f"{case.check} {case.dtype} {case.variant}: {'; '.join([*wrong, *comparison.problems])}")
    for diagnosis in oracle.diagnose(Outcome(verdicts)):
        lines += diagnosis.lines
    raise AssertionError(f"{cases[0].layout} does not give the numbers of one process:\n  " + "\n  ".join(lines))
