"""Output of ``archon verify``: a line per passing layout, a table and a diagnosis per failing layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from archon_core.cli.console import print_remark, print_text
from archon_testing.cases import Case
from archon_testing.requested_model import RequestedModel
from archon_testing.verdicts import LIMITS, NOTHING, Comparison, Quantity, worst_deviation, worst_of
from archon_testing.verification import LayoutReport

COLUMNS: dict[Quantity, str] = {
    "loss": "loss",
    "gradient norm": "norm",
    "gradients": "gradients",
    "weights": "weights",
    "outputs": "logprobs",
    "optimizer state": "state",
    "export": "export",
}
PIPE_WIDTH = 120
"""Table width if the output is not a terminal."""
CHECKS = {"training": "", "resume": " resumed", "initial": " initial", "precision": " one step"}


def kind_of(case: Case) -> str:
    """Variant and check, such as ``untied resumed``."""
    return f"{case.variant}{CHECKS[case.check]}"


def kind_and_resume(case: Case) -> str:
    """Variant, check, and the layout that resumes, such as ``untied resumed on archon:d1``."""
    return f"{kind_of(case)} on {case.resumed_on}" if case.resumed_on else kind_of(case)


def print_remarks(model: RequestedModel, name: str) -> None:
    """Print remarks about a model, which the user calls ``name``, and the sizes that were reduced."""
    for remark in model.remarks:
        print_remark(f"{name}: {remark}")
    if model.changes:
        print_remark(
            f"{name} was shrunk, with the same structure: {', '.join(model.changes)} (--as-is keeps its sizes)"
        )


def print_line(report: LayoutReport) -> None:
    """Print one line for a passing layout: its worst relative error."""
    judged = [
        c.worst[quantity]
        for v in report.verdicts
        if (c := v.comparison) is not None
        for quantity in c.judged
        if c.dtype == _strictest(report)
    ]
    worst = worst_deviation(judged)
    ranks = report.layout.layout.world_size
    print_text(
        Text.assemble(
            ("PASS ", "bold green"),
            f"{report.layout!s:<30} {ranks} rank{'s' * (ranks > 1):<1} {len(report.verdicts):>3} cases  worst in "
            f"{_strictest(report)} {worst.error:.1e}",
        )
    )


def print_report(report: LayoutReport) -> None:
    """Print a layout's table, with the worst errors per dtype and variant, and its problems."""
    ranks = report.layout.layout.world_size
    print_text(Text(f"{report.layout}, {ranks} rank{'s' * (ranks > 1)}", style="bold"))
    if report.refusal:
        print_text(Text.assemble(("REFUSED ", "bold yellow"), f"{report.refusal}\n"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("dtype", "variant", *COLUMNS.values(), "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("worst gradient", overflow="fold")
    for variant, comparison in _lines(report, kind_of):
        table.add_row(*_row(variant, comparison))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)
    for variant, comparison in _lines(report, kind_and_resume):
        errors = [f"{quantity}: {comparison.worst[quantity]}" for quantity in comparison.failed]
        for problem in (*errors, *comparison.problems):
            print_text(Text.assemble(("FAIL ", "bold red"), f"{comparison.dtype} {variant}: {problem}"))
    if report.crash:
        print_text(Text.assemble(("FAIL ", "bold red"), report.crash))
    _print_diagnoses(report)
    print_text("")


def print_summary(
    reports: Sequence[LayoutReport],
    left_out: Mapping[str, str],
    *,
    numbers_of: str = "one process",
    limits: Mapping[str, float] = LIMITS,
) -> None:
    """Print the summary: the number of passing layouts, the failing ones, and those left out.

    Args:
        reports: of all layouts.
        left_out: layouts of ``--all`` that do not fit the model -> reason.
        numbers_of: the oracle.
        limits: its limit in each dtype.
    """
    if left_out:
        layout, reason = next(iter(left_out.items()))
        what = f"{len(left_out)} layout{'s' * (len(left_out) > 1)}"
        print_text(f"{what} left out, because they do not fit this model, such as {layout}: {reason}")
    passed = [report for report in reports if report.passed]
    n_cases = sum(len(report.verdicts) for report in reports)
    ran = {verdict.case.compute_dtype for report in reports for verdict in report.verdicts}
    listed = ", ".join(f"{limit:g} in {dtype}" for dtype, limit in limits.items() if dtype in ran or not ran)
    line = Text.assemble(
        ("PASS", "bold green") if len(passed) == len(reports) else ("FAIL", "bold red"),
        f": {len(passed)} of {len(reports)} layouts give the numbers of {numbers_of} ({n_cases} cases; relative errors "
        f"up to {listed})",
    )
    for what in ("different", "crashed", "refused"):
        if chosen := [str(report.layout) for report in reports if report.outcome == what]:
            line.append(f"; {what}: {', '.join(chosen)}")
    print_text(line)


def _print_diagnoses(report: LayoutReport) -> None:
    for diagnosis in report.diagnoses:
        case = diagnosis.case
        of = f"{case.compute_dtype} {kind_and_resume(case)}, {case.n_mbs} micro-batch{'es' * (case.n_mbs > 1)}"
        if case.recompute != "none":
            of += f", ac_mode {case.recompute}"
        print_text(Text.assemble(("DIAGNOSIS ", "bold cyan"), of))
        for line in diagnosis.lines:
            print_text(f"  {line}")
    if report.undiagnosed:
        print_text(Text.assemble(("DIAGNOSIS ", "bold cyan"), f"failed: {report.undiagnosed}"))


def _strictest(report: LayoutReport) -> str:
    """The dtype with the lowest limit in the report."""
    return min({v.case.compute_dtype for v in report.verdicts}, key=LIMITS.__getitem__, default="float64")


def _lines(report: LayoutReport, kind: Callable[[Case], str]) -> list[tuple[str, Comparison]]:
    """The worst comparison per dtype and kind, in running order."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for verdict in report.verdicts:
        if verdict.comparison is not None:
            groups.setdefault((verdict.case.compute_dtype, kind(verdict.case)), []).append(verdict.comparison)
    return [(variant, worst_of(comparisons)) for (_, variant), comparisons in groups.items()]


def _row(variant: str, comparison: Comparison) -> list[Text]:
    verdict = Text("PASS", "green") if comparison.passed else Text("FAIL", "bold red")
    errors = [_error(comparison, quantity) for quantity in COLUMNS]
    gradient = comparison.worst["gradients"].name
    return [Text(comparison.dtype), Text(variant), *errors, verdict, Text("" if gradient == NOTHING else gradient)]


def _error(comparison: Comparison, quantity: Quantity) -> Text:
    """Red above the limit, dim without a limit, a dash if not recorded."""
    if comparison.worst[quantity].name == NOTHING:
        return Text("-", "dim")
    style = "red" if quantity in comparison.failed else "" if quantity in comparison.judged else "dim"
    return Text(f"{comparison.worst[quantity].error:.1e}", style)
