"""Log lines about requests (``rollout.enable_rollout_tracing``)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from archon_core.contracts.rollout import Completion

logger = logging.getLogger(__name__)


def trace_request(group: str, n_prompt: int, completions: Sequence[Completion], seconds: float) -> None:
    """Log a request that was answered.

    Args:
        group: of the request.
        n_prompt: tokens of its prompt.
        completions: its completions.
        seconds: its duration.
    """
    lengths = ", ".join(str(len(one.token_ids)) for one in completions)
    versions = sorted({version for one in completions for version in one.versions})
    reasons = Counter(one.stop_reason for one in completions)
    logger.info(
        "group %s: %d prompt tokens, completions of %s tokens in %.3f s; versions %s; ended by %s",
        group,
        n_prompt,
        lengths,
        seconds,
        ", ".join(map(str, versions)) or "-",
        ", ".join(f"{reason} ({n})" for reason, n in sorted(reasons.items())),
    )


def trace_failure(group: str, n_prompt: int, error: BaseException, seconds: float) -> None:
    """Log a request that failed or was cancelled."""
    logger.info(
        "group %s: %d prompt tokens, no completion after %.3f s: %s: %s",
        group,
        n_prompt,
        seconds,
        type(error).__name__,
        error,
    )
