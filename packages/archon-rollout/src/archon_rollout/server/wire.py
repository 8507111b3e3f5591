"""The server's own request and response: token ids in; ids, log-probabilities, versions and routed experts out.

Unknown fields are refused by name: an option that a server silently ignores would change what a trainer learns from.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, get_type_hints

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.errors import DataError, ServerError
from archon_core.serving.fields import check_fields
from archon_core.serving.scores import Scores, ScoringRequest
from archon_core.serving.token_versions import VersionSpan, spans_of, versions_of
from archon_core.serving.wire import to_data

OPTIONS = get_type_hints(GenerationConfig)
"""Sampling options and their types."""

_DEFAULTS = GenerationConfig()

MAX_SAMPLES = 4096
"""Largest number of samples of one request."""


@dataclass(frozen=True)
class GenerateCall:
    """The body of ``POST /generate``.

    Attributes:
        requests: at least one.
        request_id: the caller's id, for ``/abort``; empty if it gave none.
        routed_experts: whether to return routed experts.
    """

    requests: tuple[GenerationRequest, ...]
    request_id: str = ""
    routed_experts: bool = False


def parse_generate(data: Any) -> GenerateCall:
    """The call that a JSON body describes.

    Raises:
        DataError: the body is malformed, or has an unknown field.
    """
    known = {"requests": list, "request_id": str, "routed_experts": bool}
    body = check_fields(data, known, where="generate", required=("requests",))
    requests = tuple(_parse_request(item, f"request {i}") for i, item in enumerate(body["requests"]))
    if not requests:
        raise DataError("generate: found an empty list of requests; allowed is at least 1")
    return GenerateCall(requests, body.get("request_id", ""), body.get("routed_experts", False))


def _parse_request(data: Any, where: str) -> GenerationRequest:
    known = {"prompt_ids": list[int], "seeds": list[int], **OPTIONS}
    body = dict(check_fields(data, known, where=where, required=("prompt_ids", "seeds")))
    prompt, seeds = tuple(body.pop("prompt_ids")), tuple(body.pop("seeds"))
    if len(seeds) > MAX_SAMPLES:
        raise DataError(
            f"{where}: seeds: found {len(seeds)}; allowed are at most {MAX_SAMPLES}; divide the samples among requests"
        )
    return GenerationRequest(prompt, GenerationConfig(**{"n_samples": len(seeds), **body}), seeds)


def parse_score(data: Any) -> ScoringRequest:
    """The request for scores that a JSON body describes.

    Raises:
        DataError: the body is malformed, or has an unknown field.
    """
    known = {"sequences": list[list[int]], "temperature": float}
    body = check_fields(data, known, where="score", required=("sequences",))
    return ScoringRequest(tuple(map(tuple, body["sequences"])), float(body.get("temperature", 1.0)))


def read_scores(data: Any) -> Scores:
    """The scores that a server sent.

    Raises:
        ServerError: they are malformed.
    """
    try:
        return Scores(tuple(tuple(map(float, row)) for row in data["logprobs"]), int(data["version"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"scores: found a malformed answer ({error!r}); check the server's version") from error


def request_data(request: GenerationRequest) -> dict[str, Any]:
    """A request as a JSON object; options at their defaults are left out."""
    options = {name: getattr(request.config, name) for name in OPTIONS}
    changed = {name: value for name, value in options.items() if value != getattr(_DEFAULTS, name)}
    return {"prompt_ids": list(request.prompt_ids), "seeds": list(request.seeds), **changed}


def completion_data(completion: Completion) -> dict[str, Any]:
    """A completion as a JSON object, with its versions as spans."""
    data: dict[str, Any] = {
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "versions": [to_data(span) for span in spans_of(completion.versions)],
        "stop_reason": completion.stop_reason,
    }
    if completion.routed_experts is not None:
        experts = completion.routed_experts.contiguous()
        content = base64.b64encode(experts.numpy().tobytes()).decode()
        data["routed_experts"] = {"shape": list(experts.shape), "int16": content}
    return data


def read_completion(data: Any) -> Completion:
    """The completion that a server sent.

    Raises:
        ServerError: it is malformed.
    """
    try:
        token_ids = tuple(data["token_ids"])
        spans = [VersionSpan(span["version"], span["start"], span["end"]) for span in data["versions"]]
        experts = None
        if "routed_experts" in data:
            import torch

            content = bytearray(base64.b64decode(data["routed_experts"]["int16"]))
            experts = torch.frombuffer(content, dtype=torch.int16).view(data["routed_experts"]["shape"])
        return Completion(
            token_ids, tuple(data["logprobs"]), versions_of(spans, len(token_ids)), data["stop_reason"], experts
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ServerError(f"completion: found a malformed answer ({error!r}); check the server's version") from error
