"""Scores of given tokens from ``/generate``: the log-probabilities of a prompt, without a generated token.

SGLang computes them at temperature 1 whatever the request asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archon_core.errors import ServerError
from archon_core.serving.weight_labels import version_of


def scoring_data(token_ids: Sequence[int], *, request_id: str) -> dict[str, Any]:
    """The body that asks for the scores of one sequence."""
    return {
        "rid": request_id,
        "input_ids": list(token_ids),
        "sampling_params": {"n": 1, "max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "stream": False,
    }


def read_scores(data: Any, token_ids: Sequence[int]) -> tuple[tuple[float, ...], int]:
    """The log-probabilities of a sequence's tokens after the first, and the version of the weights.

    Raises:
        ServerError: the answer is malformed, or is about other tokens.
    """
    try:
        info = data["meta_info"]
        entries = info["input_token_logprobs"]
        if [entry[1] for entry in entries] != list(token_ids):
            raise ServerError(f"scores: found {len(entries)} tokens, which are not the {len(token_ids)} of the request")
        return tuple(float(entry[0]) for entry in entries[1:]), version_of(info["weight_version"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerError(f"scores: found a malformed answer ({error!r}); allowed is that of SGLang 0.5.23") from error
