"""What ``archon verify`` prints: a table per layout, and one line at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from archon_core.cli.console import print_text
from archon_testing.cases import Variant
from archon_testing.requested import RequestedLayout
from archon_testing.verdicts import LIMITS, Comparison, Quantity, Verdict, worst_of

COLUMNS: dict[Quantity, str] = {
    "loss": "loss",
    "gradient norm": "norm",
    "gradients": "gradients",
    "weights": "weights",
    "outputs": "logprobs",
}
PIPE_WIDTH = 120
"""Columns of a table that goes to a file, where nothing need be folded."""


@dataclass(frozen=True)
class LayoutReport:
    """What was found on one layout.

    Attributes:
        layout: which one.
        verdicts: with the name of each case's variant; of those that ran.
        refusal: why it cannot run; empty when it can.
        crash: what ended its ranks before they were through; empty when nothing did.
    """

    layout: RequestedLayout
    verdicts: Sequence[tuple[Variant, Verdict]]
    refusal: str = ""
    crash: str = ""

    @property
    def passed(self) -> bool:
        """Whether all cases did."""
        return not (self.refusal or self.crash) and all(verdict.passed for _, verdict in self.verdicts)


def print_report(report: LayoutReport) -> None:
    """Print a layout's table: a line per type and variant, the worst over micro-batch counts."""
    ranks = report.layout.layout.world_size
    print_text(Text(f"{report.layout}, {ranks} rank{'s' * (ranks > 1)}", style="bold"))
    if report.refusal:
        print_text(Text.assemble(("REFUSED ", "bold yellow"), f"{report.refusal}\n"))
        return
    lines = _lines(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("dtype", "variant", *COLUMNS.values(), "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("worst gradient", overflow="fold")
    for variant, comparison in lines:
        table.add_row(*_row(variant, comparison))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)
    for variant, comparison in lines:
        errors = [f"{quantity}: {comparison.worst[quantity]}" for quantity in comparison.failed]
        for problem in (*errors, *comparison.problems):
            print_text(Text.assemble(("FAIL ", "bold red"), f"{comparison.dtype} {variant}: {problem}"))
    if report.crash:
        print_text(Text.assemble(("FAIL ", "bold red"), report.crash))
    print_text("")


def print_summary(reports: Sequence[LayoutReport]) -> None:
    """Print the last line: how many layouts agree with one process, and which do not."""
    passed = [report for report in reports if report.passed]
    n_cases = sum(len(report.verdicts) for report in reports)
    limits = ", ".join(f"{limit:g} in {dtype}" for dtype, limit in LIMITS.items())
    line = Text.assemble(
        ("PASS", "bold green") if len(passed) == len(reports) else ("FAIL", "bold red"),
        f": {len(passed)} of {len(reports)} layouts give the numbers of one process ({n_cases} cases; relative errors "
        f"up to {limits})",
    )
    for what in ("different", "crashed", "refused"):
        if chosen := [str(report.layout) for report in reports if _outcome(report) == what]:
            line.append(f"; {what}: {', '.join(chosen)}")
    print_text(line)


def _outcome(report: LayoutReport) -> str:
    if report.refusal:
        return "refused"
    return "crashed" if report.crash else "passed" if report.passed else "different"


def _lines(report: LayoutReport) -> list[tuple[Variant, Comparison]]:
    """Per type and variant, in the order in which they ran, the worst of all cases."""
    groups: dict[tuple[str, Variant], list[Comparison]] = {}
    for variant, verdict in report.verdicts:
        if verdict.comparison is not None:
            groups.setdefault((verdict.case.dtype, variant), []).append(verdict.comparison)
    return [(variant, worst_of(comparisons)) for (_, variant), comparisons in groups.items()]


def _row(variant: Variant, comparison: Comparison) -> list[Text]:
    verdict = Text("PASS", "green") if comparison.passed else Text("FAIL", "bold red")
    errors = [_error(comparison, quantity) for quantity in COLUMNS]
    return [Text(comparison.dtype), Text(variant), *errors, verdict, Text(comparison.worst["gradients"].name)]


def _error(comparison: Comparison, quantity: Quantity) -> Text:
    """Red above the limit, dim where there is none."""
    style = "red" if quantity in comparison.failed else "" if quantity in comparison.judged else "dim"
    return Text(f"{comparison.worst[quantity].error:.1e}", style)
