"""Verifies an export: compares the logits of ``transformers``, or its scores of sequences, with the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import TrainingError
from archon_core.ranks.ranks import Ranks
from archon_rl.losses.preference import last_values

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
    return _compare(
        ours, lambda: _transformers_logits(export, batch.to(ours.device), ours.dtype), "logit", export, ranks
    )


def verify_value_export(engine: TrainEngine, export: Path, batch: Batch, ranks: Ranks = ONE_PROCESS) -> float:
    """``verify_export`` for a model with a value head: compares scores of whole sequences with those of
    ``AutoModelForSequenceClassification``."""
    ours = last_values(engine.forward_batch(batch, OutputRequest(("values",)))["values"], batch)
    return _compare(ours, lambda: _transformers_scores(export, batch.to(ours.device)), "score", export, ranks)


def _compare(ours: Tensor, compute: Callable[[], Tensor], what: str, export: Path, ranks: Ranks) -> float:
    difference = 0.0
    if ranks.is_first:
        theirs = compute()
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
    difference = ranks.broadcast(difference)
    if not difference <= TOLERANCE:
        raise TrainingError(
            f"export {export}: found {what}s in transformers that differ from the engine's by {difference:.2e} of the "
            f"largest {what}; allowed is {TOLERANCE:g}; do not use this export, and report the model's configuration"
        )
    return difference


def _transformers_logits(export: Path, batch: Batch, dtype: torch.dtype) -> Tensor:
    """[T, V]."""
    from transformers import AutoModelForCausalLM

    return torch.cat([logits[0] for logits in _each_logits(AutoModelForCausalLM, export, batch, dtype)])


def _transformers_scores(export: Path, batch: Batch) -> Tensor:
    """float64 [S]: the score of each sequence, which transformers reads at its last token."""
    from transformers import AutoModelForSequenceClassification

    each = _each_logits(AutoModelForSequenceClassification, export, batch, torch.float32)
    return torch.cat([logits[:, 0] for logits in each]).double()


def _each_logits(model_class: Any, export: Path, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    """The logits [1, ...] of ``transformers``, one sequence at a time."""
    with _without_progress_bar():
        model = model_class.from_pretrained(export, dtype=dtype, trust_remote_code=False)
    model = model.to(batch.input_ids.device).eval()
    with torch.no_grad():
        return [model(input_ids=ids[None]).logits for ids in batch.input_ids.split(list(batch.lengths))]


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
