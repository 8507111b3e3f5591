"""``archon verify``: compares layouts of a model with one process, on this machine's CPU."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from archon_core.errors import ConfigError, ModelError
from archon_engine.options.context_style import AUTO, CONTEXT_STYLES
from archon_testing.json_report import check_writable, write_json
from archon_testing.megatron_oracle.command import check_options, verify_against_megatron
from archon_testing.one_process import choose_style, design_for, verify_against_one_process
from archon_testing.report import print_remarks
from archon_testing.requested import model_of_engines, read_layouts
from archon_testing.requested_model import read_model
from archon_testing.verification import LayoutReport, requested_layouts
from archon_testing.worlds import MOST_RANKS


class OracleName(StrEnum):
    """What layouts are compared with."""

    ONE_PROCESS = "one-process"
    MEGATRON = "megatron"


FAILED = 1
USER_ERROR = 2


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
            help="Number of micro-batches, where 1 stands for one per stage; may be repeated. Default: 1, 2 and 4, "
            "with --oracle megatron 1 and 2.",
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
    oracle: Annotated[
        OracleName,
        typer.Option(
            help="What to compare with: one process, or Megatron-Core on the same layout (archon-testing[megatron])."
        ),
    ] = OracleName.ONE_PROCESS,
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
        check_writable(json_file)
    style = choose_style(cp_style)
    asked = requested_layouts(read_layouts(layouts or []))
    found = read_model(model, as_is=as_is, run_as=model_of_engines(asked, run_as))
    if tree and "tree" not in found.spec.capabilities:
        raise ModelError(
            f"--tree: found model {found.spec.name!r}, which cannot share prefixes between sequences; allowed are "
            "models that support tree (`archon models`); remove --tree"
        )
    quiet = json_file == "-"
    with (
        _leaving_at_sigterm(),
        tempfile.TemporaryDirectory(prefix="archon-verify-", ignore_cleanup_errors=True) as folder,
    ):
        if oracle == OracleName.MEGATRON:
            check_options(every=every, dtypes=dtypes or [], ranks_at_once=ranks_at_once, cp_style=style, tree=tree)
            print_remarks(found, model)
            reports, content = verify_against_megatron(
                found,
                asked,
                Path(folder),
                variants=variants or [],
                micro_batches=sorted(set(micro_batches or (1, 2))),
                seed=seed,
                time_limit=time_limit,
                quiet=quiet,
            )
        else:
            design, found = design_for(
                found,
                variants=variants or [],
                dtypes=dtypes or [],
                micro_batches=sorted(set(micro_batches or (1, 2, 4))),
                full=full or not every,
            )
            print_remarks(found, model)
            reports, content = verify_against_one_process(
                found,
                asked,
                Path(folder),
                design,
                world=(world or MOST_RANKS) if every else None,
                cp_style=style,
                prefixes="shared" if tree else "distinct",
                seed=seed,
                ranks_at_once=ranks_at_once,
                time_limit=time_limit,
                quiet=quiet,
            )
    if json_file is not None:
        write_json(content, json_file)
    raise typer.Exit(exit_code(reports))


def exit_code(reports: Sequence[LayoutReport]) -> int:
    """1 if values differ or ranks fail on some layout, else 2 if some layout was refused, else 0."""
    if any(not report.passed and not report.refusal for report in reports):
        return FAILED
    return USER_ERROR if any(report.refusal for report in reports) else 0


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
