"""``archon verify --oracle megatron``: compares layouts with Megatron-Core on the same layouts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from archon_core.errors import ConfigError
from archon_engine.options.context_style import AUTO
from archon_testing.enumeration import Design
from archon_testing.json_report import json_report
from archon_testing.megatron_oracle.architecture import LIMIT, check_installed
from archon_testing.megatron_oracle.oracle import MegatronOracle, choose_megatron_variants
from archon_testing.report import print_report, print_summary
from archon_testing.requested import RequestedLayout
from archon_testing.requested_model import RequestedModel
from archon_testing.verification import LayoutReport, Plan

DTYPE = "float32"
LIMITS = {DTYPE: LIMIT}


def verify_against_megatron(
    model: RequestedModel,
    asked: Sequence[tuple[RequestedLayout, str]],
    folder: Path,
    *,
    variants: Sequence[str],
    micro_batches: Sequence[int],
    seed: int,
    time_limit: float,
    quiet: bool,
) -> tuple[list[LayoutReport], dict[str, Any]]:
    """Verify layouts one after the other, and print a table of each unless ``quiet``.

    Args:
        model: the model.
        asked: layouts, each with the reason why Archon cannot run it; empty if it can.
        folder: an empty folder.
        variants: names; empty for all that both sides have.
        micro_batches: numbers of them, as of ``MegatronOracle``.
        seed: of weights and batches.
        time_limit: seconds per case.
        quiet: whether to print nothing.

    Returns:
        The reports, and all of them as JSON types.

    Raises:
        ArchonError: Megatron-Core is not installed, or has no such model.
    """
    started, version = time.monotonic(), check_installed()
    chosen = choose_megatron_variants(model.spec, variants)
    oracle = MegatronOracle(model, chosen, micro_batches, seed=seed, folder=folder, time_limit=time_limit)
    reports = []
    with closing(oracle.verify(asked)) as found:
        for report in found:
            reports.append(report)
            if not quiet:
                print_report(report)
    if not quiet:
        print_summary(reports, {}, numbers_of=f"Megatron-Core {version}", limits=LIMITS)
    plan = Plan(model, asked, {}, Design((DTYPE,), chosen, list(micro_batches), full=True, precision=None), seed)
    written = json_report(plan, reports, seconds=time.monotonic() - started)
    return reports, {**written, "limits": LIMITS, "oracle": {"name": "megatron-core", "version": version}}


def check_options(*, every: bool, dtypes: Sequence[str], ranks_at_once: int | None, cp_style: str, tree: bool) -> None:
    """Refuse options that this oracle does not have.

    Raises:
        ConfigError: one of them was given.
    """
    if every:
        raise ConfigError(
            "--all: found it with --oracle megatron, which runs few layouts; allowed are layouts by name; give "
            "--layout t2 --layout p2-1F1B"
        )
    if ranks_at_once is not None:
        raise ConfigError(
            "--ranks-at-once: found it with --oracle megatron, which runs one layout at a time; remove --ranks-at-once"
        )
    if cp_style != AUTO:
        raise ConfigError(
            f"--cp-style: found {cp_style!r} with --oracle megatron, which has no layouts with c; remove --cp-style"
        )
    if tree:
        raise ConfigError("--tree: found it with --oracle megatron, which packs no sequences; remove --tree")
    for dtype in dtypes:
        if dtype != DTYPE:
            raise ConfigError(
                f"--dtype: found {dtype!r} with --oracle megatron; allowed is {DTYPE}, in which Megatron-Core "
                "computes its loss; remove --dtype"
            )
