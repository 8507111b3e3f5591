"""``archon verify`` with its usual oracle: compares layouts with one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from archon_core.errors import ConfigError, did_you_mean
from archon_core.plugins import ModelSpec
from archon_engine.options.context_style import CONTEXT_STYLES, ContextStyle
from archon_testing.cases import BFLOAT16, DTYPES, DtypeName, Prefixes, allowed_dtypes, choose_variants
from archon_testing.enumeration import Design
from archon_testing.json_report import json_report
from archon_testing.oracle import Oracle
from archon_testing.report import print_line, print_report, print_summary
from archon_testing.requested import RequestedLayout
from archon_testing.requested_model import RequestedModel
from archon_testing.verification import (
    LayoutReport,
    Plan,
    all_layouts,
    buildable_variants,
    count_steps,
    largest_world_size,
    layouts_of_all,
    run_plan,
)

RANKS_PER_CORE = 4
"""Ranks mostly wait for each other, so a core can serve several."""


def design_for(
    model: RequestedModel,
    *,
    variants: Sequence[str],
    dtypes: Sequence[str],
    micro_batches: Sequence[int],
    full: bool,
) -> tuple[Design, RequestedModel]:
    """The choice of cases, and the model with remarks about variants that it lacks.

    Args:
        model: the model to verify.
        variants, dtypes: names; empty for all.
        micro_batches: numbers of them.
        full: whether every layout runs all combinations.

    Raises:
        ArchonError: a name is unknown, or the model has no such variant.
        WorldError: the process that builds the variants failed.
    """
    declared = choose_variants(model.spec, list(variants))
    chosen, refused = buildable_variants(model, declared, explicit=bool(variants))
    chosen_dtypes, precision = choose_dtypes(dtypes, model.spec)
    design = Design(chosen_dtypes, chosen, micro_batches, full=full, precision=precision)
    return design, replace(model, remarks=(*model.remarks, *refused))


def verify_against_one_process(
    model: RequestedModel,
    asked: list[tuple[RequestedLayout, str]],
    folder: Path,
    design: Design,
    *,
    world: int | None,
    cp_style: ContextStyle,
    prefixes: Prefixes,
    seed: int,
    ranks_at_once: int | None,
    time_limit: float,
    quiet: bool,
) -> tuple[list[LayoutReport], dict[str, Any]]:
    """Verify layouts, and print a table or a line of each unless ``quiet``.

    Args:
        model: the model.
        asked: layouts, each with the reason why it cannot run; empty if it can.
        folder: an empty folder.
        design: selects the cases of each layout.
        world: with ``--all``, the largest number of ranks.
        cp_style: how context ranks share attention.
        prefixes: of the batches on the layouts.
        seed: of weights and batches.
        ranks_at_once: largest number of ranks to run at once; ``None`` for four per core.
        time_limit: seconds per case.
        quiet: whether to print nothing.

    Returns:
        The reports, and all of them as JSON types.
    """
    started = time.monotonic()
    left_out: dict[str, str] = {}
    fitting = []
    all_of = partial(all_layouts, model, design.variants, cp_style=cp_style, prefixes=prefixes)
    if world is not None:
        texts, left_out = all_of(world)
        fitting = [layout for layout, _ in layouts_of_all(texts)]
        known = {str(layout) for layout, _ in asked}
        asked = [*asked, *((layout, "") for layout in fitting if str(layout) not in known)]
    elif (most := largest_world_size(asked)) > 1 and design.dtypes:
        fitting = [layout for layout, _ in layouts_of_all(all_of(most)[0])]
    plan = Plan(model, asked, left_out, design, seed, fitting, cp_style, prefixes)
    at_once = ranks_at_once or RANKS_PER_CORE * _cores()
    oracle = Oracle(folder, time_limit=time_limit, ranks_at_once=at_once)
    reports = _run(plan, oracle, brief=world is not None, quiet=quiet)
    if not quiet:
        print_summary(reports, left_out)
    return reports, json_report(plan, reports, seconds=time.monotonic() - started)


def choose_style(name: str) -> ContextStyle:
    """The way in which context ranks share attention.

    Raises:
        ConfigError: there is no such way.
    """
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


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
