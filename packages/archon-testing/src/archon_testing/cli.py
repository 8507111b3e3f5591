"""``archon verify``: hold layouts of a model against one process, on this machine's CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from archon_core.errors import ConfigError, LayoutError, did_you_mean
from archon_testing.cases import DTYPES, Case, DtypeName, Variant, choose_variants, variant_case
from archon_testing.failures import WorldError
from archon_testing.oracle import Oracle
from archon_testing.report import LayoutReport, print_report, print_summary
from archon_testing.requested import RequestedLayout, read_layouts, read_model
from archon_testing.verdicts import Verdict

FAILED = 1
USER_ERROR = 2


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of an installed model (archon models), or a config.json.")
    ],
    layouts: Annotated[
        list[str],
        typer.Option(
            "--layout", "-l", metavar="[archon:]DIMS[-SCHEDULE]", help="What to verify, such as d2t2; may be repeated."
        ),
    ],
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float64 or float32; may be repeated; both by default.")
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option("--micro-batches", min=1, help="Least number of them; may be repeated; 1, 2 and 4 by default."),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="untied, tied or critic; may be repeated; all that the model declares."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 1,
    time_limit: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a case may take before its ranks count as hung.")
    ] = 120.0,
) -> None:
    """Hold layouts of MODEL against one process: loss, gradient norm, every gradient, weights, log-probabilities.

    For every layout, type, variant and number of micro-batches, a small model takes three AdamW steps on as many
    processes as the layout needs, on the CPU. The worst relative errors are printed; the limits are 1e-9 in float64
    and 1e-5 in float32, where weights are not judged. Exit code 1: a number differs, or a rank fails. 2: the engine
    cannot run a layout or a model.
    """
    requested = read_layouts(layouts)
    spec, model_config = read_model(model)
    chosen = choose_variants(spec, variants or [])
    counts = sorted(set(micro_batches or (1, 2, 4)))
    jobs = [
        (variant, variant_case(model_config, variant, n_mbs=count, dtype=dtype, seed=seed, model=spec.name))
        for dtype in choose_dtypes(dtypes or [])
        for variant in chosen
        for count in counts
    ]
    with tempfile.TemporaryDirectory(prefix="archon-verify-") as folder:
        reports = _verify(jobs, requested, Oracle(Path(folder), time_limit=time_limit))
    print_summary(reports)
    raise typer.Exit(exit_code(reports))


def choose_dtypes(names: Sequence[str]) -> tuple[DtypeName, ...]:
    """The types called ``names``, each once; both when there are none. Raises ConfigError for any other."""
    for name in names:
        if name not in DTYPES:
            raise ConfigError(
                f"--dtype: found {name!r}; allowed are {' and '.join(DTYPES)}{did_you_mean(name, DTYPES)}"
            )
    return tuple(dtype for dtype in DTYPES if dtype in names) or DTYPES


def exit_code(reports: Sequence[LayoutReport]) -> int:
    """1 when numbers differ or ranks fail on some layout, else 2 when some layout was refused, else 0."""
    if any(not report.passed and not report.refusal for report in reports):
        return FAILED
    return USER_ERROR if any(report.refusal for report in reports) else 0


def _verify(
    jobs: Sequence[tuple[Variant, Case]], layouts: Sequence[RequestedLayout], oracle: Oracle
) -> list[LayoutReport]:
    cases = [case for _, case in jobs]
    with _progress("one process", total=oracle.count_missing(cases)) as advance:
        oracle.prepare(cases, on_reference=advance)
    reports = []
    for layout in layouts:
        reports.append(_verify_layout(jobs, layout, oracle))
        print_report(reports[-1])
    return reports


def _verify_layout(jobs: Sequence[tuple[Variant, Case]], layout: RequestedLayout, oracle: Oracle) -> LayoutReport:
    try:
        layout.check_runnable()
    except LayoutError as error:
        return LayoutReport(layout, (), refusal=str(error))
    cases = [replace(case, layout=str(layout.layout), schedule=layout.schedule) for _, case in jobs]
    verdicts: list[Verdict] = []
    crash = ""
    with _progress(str(layout), total=len(cases)) as advance:

        def take(verdict: Verdict) -> None:
            verdicts.append(verdict)
            advance(verdict)

        try:
            oracle.verify(cases, on_verdict=take)
        except WorldError as error:
            crash = str(error)
    refusals = [verdict.refusal for verdict in verdicts if verdict.refusal]
    if refusals:
        return LayoutReport(layout, (), refusal=refusals[0])
    ran = [(variant, verdict) for (variant, _), verdict in zip(jobs, verdicts, strict=False)]
    return LayoutReport(layout, ran, crash=crash)


@contextmanager
def _progress(description: str, *, total: int) -> Iterator[Callable[[object], None]]:
    """A bar on the terminal, gone afterwards; nothing where there is no terminal. Gives what advances it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda _: progress.advance(task)
