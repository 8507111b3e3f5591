"""Scores of given tokens from ``/inference/v1/generate``: the log-probabilities of a prompt.

vLLM computes them at temperature 1 whatever the request asks for. Every request generates one token, the fewest that
vLLM allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archon_core.errors import ServerError
from archon_core.serving.weight_labels import version_of


def scoring_data(token_ids: Sequence[int], *, request_id: str) -> dict[str, Any]:
    """The body that asks for the scores of one sequence."""
    sampling = {"n": 1, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    return {"request_id": request_id, "token_ids": list(token_ids), "sampling_params": sampling}


def read_scores(data: Any, token_ids: Sequence[int]) -> tuple[tuple[float, ...], int]:
    """The log-probabilities of a sequence's tokens after the first, and the version of the weights.

    Raises:
        ServerError: the answer is malformed, or is about other tokens.
    """
    try:
        (choice,) = data["choices"]
        [span] = choice["weight_versions"]
        entries = data["prompt_logprobs"][1:]
        # Beside the prompt's token, an entry may have more probable ones.
        values = tuple(entry[str(token)]["logprob"] for entry, token in zip(entries, token_ids[1:], strict=True))
        return values, version_of(span["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"scores: found a malformed answer ({error!r}); allowed is that of vLLM 0.32") from error
