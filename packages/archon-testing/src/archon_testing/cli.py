"""``archon verify``: compares layouts of a model with one process, on this machine's CPU."""

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
from archon_core.errors import ConfigError, ModelError, did_you_mean
from archon_core.plugins import ModelSpec
from archon_engine.options.context_style import AUTO, CONTEXT_STYLES, ContextStyle
from archon_testing.cases import BFLOAT16, DTYPES, DtypeName, Prefixes, allowed_dtypes, choose_variants
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
    largest_world_size,
    layouts_of_all,
    requested_layouts,
    run_plan,
)
from archon_testing.worlds import MOST_RANKS

FAILED = 1
USER_ERROR = 2
RANKS_PER_CORE = 4
"""Ranks mostly wait for each other, so a core can serve several."""


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of an installed model (archon models), or a config.json.")
    ],
    run_as: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Model plugin to run it with, such as hf. Default: the one for its model type.",
            show_default=False,
        ),
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            "-l",
            metavar="[archon:]DIMS[-SCHEDULE]",
            help="Layout to verify, such as d2t2; may be repeated.",
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Verify every layout of up to --world ranks that fits the model and the engine."),
    ] = False,
    world: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_RANKS, help=f"Largest number of ranks of --all. Default: {MOST_RANKS}.", show_default=False
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="With --all: run all combinations of dtype, variant and micro-batches, as for --layout."
        ),
    ] = False,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float64, float32 or bfloat16; may be repeated. Default: all.")
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option(
            "--micro-batches",
            min=1,
            help="Number of micro-batches, where 1 stands for one per stage; may be repeated. Default: 1, 2 and 4.",
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant", help="untied, tied, critic or lora; may be repeated. Default: all that the model declares."
        ),
    ] = None,
    cp_style: Annotated[
        str,
        typer.Option(
            "--cp-style",
            metavar="|".join(CONTEXT_STYLES),
            help="How context ranks share attention, as in actor.archon.cp_style.",
        ),
    ] = AUTO,
    tree: Annotated[
        bool,
        typer.Option(
            "--tree",
            help="Train on sequences that share prefixes, computed once on the layout (actor.enable_tree_training) and "
            "for every sequence apart on the one process.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 1,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Keep the sizes of a config.json, however large it is.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write all results as JSON to FILE, or to standard output (-)."),
    ] = None,
    ranks_at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of ranks to run at once. Default: four per core.", show_default=False),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1.0, help="Seconds per case before its ranks count as hung.")
    ] = 120.0,
) -> None:
    """Compare layouts of MODEL with one process: loss, gradient norm, every gradient, weights, log-probabilities.

    For every layout, dtype, variant and number of micro-batches, a small model takes three AdamW steps on the CPU, with
    one process per rank; --all runs a few cases per layout. Further checks: initial weights without a checkpoint,
    exported files, runs resumed on other layouts, activation checkpointing, a step in bfloat16. The limits are 1e-9 in
    float64 and 1e-5 in float32, where weights are not judged. A layout that differs is run again to find where the
    error first appears. Exit code 1: a value differs, or a rank fails. 2: the engine cannot run a layout or a model.
    """
    if not layouts and not every:
        raise ConfigError(
            "archon verify: found neither --layout nor --all; add --all, or a layout such as --layout d2t2"
        )
    if not every and (full or world is not None):
        option = "--full" if full else "--world"
        raise ConfigError(f"{option}: found it without --all, which it requires; add --all, or remove {option}")
    if json_file is not None:
        _check_writable(json_file)
    started = time.monotonic()
    asked = requested_layouts(read_layouts(layouts or []))
    found = read_model(model, as_is=as_is, run_as=model_of_engines(asked, run_as))
    if tree and "tree" not in found.spec.capabilities:
        raise ModelError(
            f"--tree: found model {found.spec.name!r}, which cannot share prefixes between sequences; allowed are "
            "models that support tree (`archon models`); remove --tree"
        )
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
    elif (most := largest_world_size(asked)) > 1 and chosen_dtypes:
        fitting = [layout for layout, _ in layouts_of_all(all_layouts(found, design.variants, most)[0])]
    prefixes: Prefixes = "shared" if tree else "distinct"
    plan = Plan(found, asked, left_out, design, seed, fitting, _style(cp_style), prefixes)
    quiet = json_file == "-"
    _print_remarks(found, model)
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


def _style(name: str) -> ContextStyle:
    if name not in CONTEXT_STYLES:
        allowed = ", ".join(CONTEXT_STYLES)
        raise ConfigError(f"--cp-style: found {name!r}{did_you_mean(name, CONTEXT_STYLES)}; allowed are {allowed}")
    return name  # type: ignore[return-value]


def choose_dtypes(names: Sequence[str], spec: ModelSpec) -> tuple[tuple[DtypeName, ...], DtypeName | None]:
    """The dtypes ``names``, or all dtypes of the model if empty.

    Returns:
        The dtypes of training runs, and the dtype of the reference of the bfloat16 step; ``None`` without that step.

    Raises:
        ConfigError: a name is unknown, or the model's values are meaningless in that dtype.
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
                f"{spec.rounds_inside}; remove --dtype"
            )
    chosen = tuple(dtype for dtype in allowed if dtype in names or not names)
    return chosen, allowed[0] if BFLOAT16 in names or not names else None


def exit_code(reports: Sequence[LayoutReport]) -> int:
    """1 if values differ or ranks fail on some layout, else 2 if some layout was refused, else 0."""
    if any(not report.passed and not report.refusal for report in reports):
        return FAILED
    return USER_ERROR if any(report.refusal for report in reports) else 0


def _run(plan: Plan, oracle: Oracle, *, brief: bool, quiet: bool) -> list[LayoutReport]:
    reports = []
    with (
        _progress(total=count_steps(plan, oracle)) as advance,
        # Closed on any exception: ranks must not outlive the command.
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


def _print_remarks(model: RequestedModel, name: str) -> None:
    for remark in model.remarks:
        print_remark(f"{name}: {remark}")
    if model.changes:
        print_remark(
            f"{name} was shrunk, with the same structure: {', '.join(model.changes)} (--as-is keeps its sizes)"
        )


def _check_writable(file: str) -> None:
    """Check before minutes of work that the file is writable; creates nothing. Raises ConfigError."""
    path = Path(file)
    if file != "-" and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ConfigError(f"--json: cannot write {file!r}; name a file in an existing, writable folder")


def _write_json(content: object, file: str) -> None:
    if file == "-":
        print_json(content)
        return
    try:
        Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json: cannot write {file!r} ({error}); name a file in an existing, writable folder"
        ) from error


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """Exit on SIGTERM as on Ctrl-C, so that ranks end and temporary folders are removed."""
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
    """A transient progress bar on a terminal; yields a function that advances it."""
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
