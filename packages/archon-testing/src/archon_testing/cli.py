"""``archon verify``: hold layouts of a model against one process, on this machine's CPU."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from archon_core.cli.console import print_json, print_remark
from archon_core.errors import ConfigError, did_you_mean
from archon_core.plugins import ModelSpec
from archon_testing.cases import BFLOAT16, DTYPES, DtypeName, allowed_dtypes, choose_variants
from archon_testing.enumeration import Design
from archon_testing.json_report import json_report
from archon_testing.oracle import Oracle
from archon_testing.report import print_line, print_report, print_summary
from archon_testing.requested import model_of_engines, read_layouts
from archon_testing.requested_model import RequestedModel, read_model
from archon_testing.verification import (
    LayoutReport,
    Plan,
    all_layouts,
    buildable_variants,
    count_steps,
    layouts_of_all,
    most_ranks_of_ours,
    requested_layouts,
    run_plan,
)
from archon_testing.worlds import MOST_RANKS

FAILED = 1
USER_ERROR = 2
RANKS_PER_CORE = 4
"""Ranks wait for each other most of the time, so a core serves several."""


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of an installed model (archon models), or a config.json.")
    ],
    run_as: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Model spec that runs it, such as hf; by default the one that serves its model type.",
            show_default=False,
        ),
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            "--layout", "-l", metavar="[archon:]DIMS[-SCHEDULE]", help="What to verify, such as d2t2; may be repeated."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every layout of up to --world ranks that the model and the engine allow.")
    ] = False,
    world: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_RANKS, help=f"Most ranks of a layout of --all; {MOST_RANKS} by default.", show_default=False
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="With --all: every product of types, variants and micro-batches, as for --layout."),
    ] = False,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float64, float32 or bfloat16; may be repeated; all by default.")
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option(
            "--micro-batches",
            min=1,
            help="Least number of them, counted from the number of stages; may be repeated; 1, 2 and 4 by default.",
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="untied, tied or critic; may be repeated; all that the model declares."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 1,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Keep the sizes of a config.json, however large it is.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write all results there as JSON; - prints nothing else."),
    ] = None,
    ranks_at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks that run beside each other; four per core by default.", show_default=False),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a case may take before its ranks count as hung.")
    ] = 120.0,
) -> None:
    """Hold layouts of MODEL against one process: loss, gradient norm, every gradient, weights, log-probabilities.

    For every layout, type, variant and number of micro-batches, a small model takes three AdamW steps on as many
    processes as the layout needs, on the CPU; --all runs a few cases per layout. Further checks: weights without a
    checkpoint, exported files, runs that other layouts resume, recomputed activations, a step in bfloat16. The limits
    are 1e-9 in float64 and 1e-5 in float32, where weights are not judged. A layout that differs is run again, to say
    where its mistake shows first. Exit code 1: a number differs, or a rank fails. 2: the engine cannot run a layout or
    a model.
    """
    if not layouts and not every:
        raise ConfigError("archon verify: found neither --layout nor --all; write --layout d2t2, say, or --all")
    if not every and (full or world is not None):
        option = "--full" if full else "--world"
        raise ConfigError(f"{option}: found it without --all, which it is for; add --all, or leave {option} out")
    if json_file is not None:
        _check_writable(json_file)
    started = time.monotonic()
    asked = requested_layouts(read_layouts(layouts or []))
    found = read_model(model, as_is=as_is, run_as=model_of_engines(asked, run_as))
    chosen, refused = buildable_variants(found, choose_variants(found.spec, variants or []), explicit=bool(variants))
    found = replace(found, remarks=(*found.remarks, *refused))
    chosen_dtypes, precision = choose_dtypes(dtypes or [], found.spec)
    design = Design(
        chosen_dtypes,
        chosen,
        sorted(set(micro_batches or (1, 2, 4))),
        full=full or not every,
        precision=precision,
    )
    left_out: dict[str, str] = {}
    fitting = []
    if every:
        texts, left_out = all_layouts(found, design.variants, world or MOST_RANKS)
        fitting = [layout for layout, _ in layouts_of_all(texts)]
        known = {str(layout) for layout, _ in asked}
        asked += [(layout, "") for layout in fitting if str(layout) not in known]
    elif (most := most_ranks_of_ours(asked)) > 1 and chosen_dtypes:
        fitting = [layout for layout, _ in layouts_of_all(all_layouts(found, design.variants, most)[0])]
    plan = Plan(found, asked, left_out, design, seed, fitting)
    quiet = json_file == "-"
    _say_what_is_different(found, model)
    with (
        _leaving_at_sigterm(),
        tempfile.TemporaryDirectory(prefix="archon-verify-", ignore_cleanup_errors=True) as folder,
    ):
        at_once = ranks_at_once or RANKS_PER_CORE * _cores()
        oracle = Oracle(Path(folder), time_limit=time_limit, ranks_at_once=at_once)
        reports = _run(plan, oracle, brief=every, quiet=quiet)
    if not quiet:
        print_summary(reports, left_out)
    if json_file is not None:
        _write_json(json_report(plan, reports, seconds=time.monotonic() - started), json_file)
    raise typer.Exit(exit_code(reports))


def choose_dtypes(names: Sequence[str], spec: ModelSpec) -> tuple[tuple[DtypeName, ...], DtypeName | None]:
    """The types called ``names``, or all that the model is compared in when there are none.

    Returns:
        The types of whole runs, and that of the reference of the step in bfloat16; ``None`` without that step.

    Raises:
        ConfigError: another name, or a type in which numbers of the model do not tell.
    """
    allowed, known = allowed_dtypes(spec), (*DTYPES, BFLOAT16)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--dtype: found {name!r}; allowed are {', '.join(DTYPES)} and {BFLOAT16}{did_you_mean(name, known)}"
            )
        if name not in (*allowed, BFLOAT16):
            raise ConfigError(
                f"--dtype: found {name!r}; model {spec.name!r} is compared in {' and '.join((*allowed, BFLOAT16))}: "
                f"{spec.rounds_inside}; leave --dtype out"
            )
    chosen = tuple(dtype for dtype in allowed if dtype in names or not names)
    return chosen, allowed[0] if BFLOAT16 in names or not names else None


def exit_code(reports: Sequence[LayoutReport]) -> int:
    """1 when numbers differ or ranks fail on some layout, else 2 when some layout was refused, else 0."""
    if any(not report.passed and not report.refusal for report in reports):
        return FAILED
    return USER_ERROR if any(report.refusal for report in reports) else 0


def _run(plan: Plan, oracle: Oracle, *, brief: bool, quiet: bool) -> list[LayoutReport]:
    reports = []
    with (
        _progress(total=count_steps(plan, oracle)) as advance,
        # Closed at once, whatever is raised here: ranks must not outlive the command.
        closing(run_plan(plan, oracle, advance)) as found,
    ):
        for report in found:
            reports.append(report)
            if quiet:
                continue
            if brief and report.passed:
                print_line(report)
            else:
                print_report(report)
    return reports


def _say_what_is_different(model: RequestedModel, name: str) -> None:
    for remark in model.remarks:
        print_remark(f"{name}: {remark}")
    if model.changes:
        print_remark(f"{name} was made small, its structure kept: {', '.join(model.changes)} (--as-is keeps its sizes)")


def _check_writable(file: str) -> None:
    """Before minutes of work, not after; nothing is created yet. Raises ConfigError."""
    path = Path(file)
    if file != "-" and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ConfigError(
            f"--json {file!r}: it cannot be written; name a file in a folder that exists and that you may write to"
        )


def _write_json(content: object, file: str) -> None:
    if file == "-":
        print_json(content)
        return
    try:
        Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json {file!r}: it cannot be written ({error}); name a file in a folder that exists"
        ) from error


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, ranks and temporary folders with it: Python would leave the folders."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _progress(*, total: int) -> Iterator[Callable[[], None]]:
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
        task = progress.add_task("cases", total=total)
        yield lambda: progress.advance(task)
