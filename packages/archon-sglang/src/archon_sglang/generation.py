"""Requests and answers of ``/generate``: token ids in; ids, log-probabilities, versions, experts out."""

from __future__ import annotations

import base64
import math
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ServerError
from archon_core.serving.completion_limit import completion_limit
from archon_core.serving.token_versions import VersionSpan, versions_of
from archon_core.serving.weight_labels import version_of

REASONS = ("stop", "length", "abort")


def request_data(
    request: GenerationRequest, sample: int, *, request_id: str, routed_experts: bool, seeded: bool
) -> dict[str, Any]:
    """The body that asks for one sample of a request.

    Args:
        request: the request.
        sample: index of the sample, and of its seed.
        request_id: id for ``/abort_request``.
        routed_experts: whether to return routed experts.
        seeded: whether the server honours seeds.

    Raises:
        RefusedRequestError: the prompt leaves no room for a token, or the request has stop texts.
    """
    config = request.config
    limit = completion_limit(request, "SGLang")
    sampling: dict[str, Any] = {
        "n": 1,
        "max_new_tokens": limit,
        "min_new_tokens": min(config.min_new_tokens, limit),
        "frequency_penalty": config.frequency_penalty,
        "temperature": 0.0 if config.greedy else config.temperature,
        "top_p": 1.0 if config.greedy else config.top_p,
        "top_k": -1 if config.greedy or not config.top_k else config.top_k,
        # The request names all ids that end a completion, and keeps the one that did.
        "ignore_eos": True,
        "stop_token_ids": list(config.stop_token_ids),
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }
    if seeded:
        sampling["sampling_seed"] = request.seeds[sample] % 2**31
    data: dict[str, Any] = {
        "rid": request_id,
        "input_ids": list(request.prompt_ids),
        "sampling_params": sampling,
        "return_logprob": True,
        "stream": False,
    }
    if routed_experts:
        data["return_routed_experts"] = True
    return data


def read_completion(data: Any, *, experts_shape: tuple[int, int] | None = None) -> Completion:
    """The completion of an answer.

    Args:
        data: the answer.
        experts_shape: layers and experts per token of the model, if routed experts were requested.

    Raises:
        ServerError: it is malformed, or has no version per token.
    """
    try:
        token_ids, info = tuple(data["output_ids"]), data["meta_info"]
        entries = info.get("output_token_logprobs") or []
        logprobs = tuple(float(entry[0]) for entry in entries)
        if tuple(entry[1] for entry in entries) != token_ids:
            raise ServerError(f"completion: found log-probabilities of {len(entries)} other tokens than the answer's")
        if any(math.isnan(value) for value in logprobs):
            raise ServerError("completion: found log-probabilities that are no numbers; the server's weights are bad")
        spans = [VersionSpan(version_of(span["version"]), span["start"], span["end"]) for span in _spans(info)]
        reason = info["finish_reason"]["type"]
        if reason not in REASONS:
            raise ServerError(f"completion: found finish reason {reason!r}; allowed are {', '.join(REASONS)}")
        experts = info.get("routed_experts")
        return Completion(
            token_ids,
            logprobs,
            versions_of(spans, len(token_ids)),
            reason,
            None if experts is None or experts_shape is None else read_experts(experts, experts_shape),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerError(
            f"completion: found a malformed answer ({error!r}); allowed is that of SGLang 0.5.23"
        ) from error


def read_experts(text: str, shape: tuple[int, int]) -> Any:
    """Routed experts from base64 of int32, as an int16 tensor [tokens, layers, k].

    Raises:
        ServerError: the size does not fit the model.
    """
    import torch

    values = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int32)
    if values.numel() % (shape[0] * shape[1]):
        raise ServerError(
            f"routed experts: found {values.numel()} numbers; allowed are multiples of {shape[0]} layers x {shape[1]} "
            "experts per token; the server has another model"
        )
    return values.view(-1, *shape).to(torch.int16)


def _spans(info: Any) -> list[Any]:
    """The spans of an answer, without the empty one that SGLang reports for an answer without tokens."""
    return [span for span in info["weight_versions"] if span["end"] > span["start"]]
