"""Verifies an export: compares the logits of ``transformers`` with the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import TrainingError
from archon_core.ranks.ranks import Ranks

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit. Two correct fp32 implementations differ by about 1e-6."""

ONE_PROCESS = Ranks()


def verify_export(engine: TrainEngine, export: Path, batch: Batch, ranks: Ranks = ONE_PROCESS) -> float:
    """Load ``export`` with ``AutoModelForCausalLM`` and compare its logits on ``batch`` with the engine's.

    Every data rank computes the whole batch, which is small, to avoid a transfer of logits. ``transformers`` runs on
    the first rank, which broadcasts the difference.

    Returns:
        The largest absolute difference, divided by the largest logit.

    Raises:
        TrainingError: on all ranks, the difference is above ``TOLERANCE`` or NaN.
    """
    ours = engine.forward_batch(batch, OutputRequest(("logits",)))["logits"]
    difference = 0.0
    if ranks.is_first:
        theirs = _transformers_logits(export, batch.to(ours.device), ours.dtype)
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
    difference = ranks.broadcast(difference)
    if not difference <= TOLERANCE:
        raise TrainingError(
            f"export {export}: found logits in transformers that differ from the engine's by {difference:.2e} of the "
            f"largest logit; allowed is {TOLERANCE:g}; do not use this export, and report the model's configuration"
        )
    return difference


def _transformers_logits(export: Path, batch: Batch, dtype: torch.dtype) -> Tensor:
    """[T, V], one sequence at a time."""
    from transformers import AutoModelForCausalLM

    with _without_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(export, dtype=dtype, trust_remote_code=False)
    model = model.to(batch.input_ids.device).eval()
    with torch.no_grad():
        rows = [model(input_ids=ids[None]).logits[0] for ids in batch.input_ids.split(list(batch.lengths))]
    return torch.cat(rows)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the progress bar of ``transformers``, which would break ours."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
