"""The oracle's work inside the ranks: references from one process, and cases held against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from archon_core.errors import ArchonError, ConfigError, LayoutError
from archon_testing.cases import Case
from archon_testing.compare import compare
from archon_testing.engines import CLIP_TO, write_checkpoint
from archon_testing.functions import FunctionReference
from archon_testing.record import Record, measure
from archon_testing.verdicts import Verdict

CHECKPOINT = "checkpoint"
RECORD = "record.pt"


def compute_references(jobs: Sequence[tuple[Case, Path]]) -> Iterator[ArchonError | None]:
    """Write weights and record of each case, as one process computes it, into its folder.

    Yields:
        ``None`` for a case that is done, or why it cannot be, which ends the run.
    """
    for case, folder in jobs:
        try:
            write_checkpoint(case, folder / CHECKPOINT)
            record = measure(case.reference, folder / CHECKPOINT)
            _check_clipped(record)
        except ArchonError as error:
            yield error
            return
        torch.save(record, folder / RECORD)
        yield None


def hold_against_references(
    jobs: Sequence[tuple[Case, Path]], before: FunctionReference | None = None
) -> Iterator[Verdict]:
    """Run each case, in a world of its layout's size, and compare with the record in its folder.

    Args:
        jobs: cases, and the folders of their references.
        before: called once on every rank before the first engine is built.

    Yields:
        What this rank has seen of each case.
    """
    if before is not None:
        before.load()()
    for case, folder in jobs:
        try:
            record = measure(case, folder / CHECKPOINT)
        except LayoutError as error:
            # Raised on every rank alike, before the first collective: the next case may run.
            yield Verdict(case, None, str(error))
            continue
        # A file of our own, holding more than tensors.
        reference: Record = torch.load(folder / RECORD, weights_only=False)
        yield Verdict(case, compare(record, reference, case.dtype))


def _check_clipped(record: Record) -> None:
    smallest = min(step.gradient_norm for step in record.steps)
    if not smallest > CLIP_TO:
        raise ConfigError(
            f"verify: found a gradient norm of {smallest:.3g} on one process; it must be above {CLIP_TO}, or clipping "
            "would not show a wrong norm; give a configuration with usual sizes"
        )
