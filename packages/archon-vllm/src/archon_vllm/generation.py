"""Requests and answers of ``/inference/v1/generate``: token ids in; ids, log-probabilities, versions, experts out."""

from __future__ import annotations

import ast
import base64
import struct
from collections.abc import Mapping
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import RefusedRequestError, ServerError
from archon_core.serving.completion_limit import completion_limit
from archon_core.serving.token_versions import VersionSpan, versions_of
from archon_core.serving.weight_labels import version_of

STOP_REASONS = {"stop": "stop", "length": "length", "abort": "abort"}

ITEM_TYPES = {"|u1": "uint8", "<u2": "uint16", "<i4": "int32"}
"""dtypes of routed experts in NumPy's notation, and torch's names."""


def request_data(request: GenerationRequest, sample: int, *, request_id: str) -> dict[str, Any]:
    """The body that asks for one sample of a request.

    Raises:
        RefusedRequestError: an option that vLLM cannot honour, or a prompt without room for a token.
    """
    config = request.config
    if not config.greedy and (config.top_p < 1 or config.top_k > 0):
        raise RefusedRequestError(
            f"gconfig: found top_p {config.top_p:g} and top_k {config.top_k}; allowed with vLLM are 1 and 0, because "
            "it returns log-probabilities of the distribution after the cut, which a trainer cannot recompute"
        )
    limit = completion_limit(request, "vLLM")
    sampling: dict[str, Any] = {
        "n": 1,
        "max_tokens": limit,
        "min_tokens": min(config.min_new_tokens, limit),
        "frequency_penalty": config.frequency_penalty,
        "temperature": 0.0 if config.greedy else config.temperature,
        "seed": request.seeds[sample] % 2**63,
        "logprobs": 0,
        "detokenize": False,
        # The request names all ids that end a completion.
        "ignore_eos": True,
        "stop_token_ids": list(config.stop_token_ids),
    }
    return {"request_id": request_id, "token_ids": list(request.prompt_ids), "sampling_params": sampling}


def read_completion(data: Any) -> Completion:
    """The completion of an answer.

    Raises:
        ServerError: it is malformed, or has no versions.
    """
    try:
        (choice,) = data["choices"]
        token_ids = tuple(choice["token_ids"] or ())
        logprobs = tuple(item["logprob"] for item in (choice["logprobs"] or {"content": ()})["content"])
        spans = [VersionSpan(version_of(s["version"]), s["start"], s["end"]) for s in choice["weight_versions"] or ()]
        reason = STOP_REASONS[choice["finish_reason"]]
        experts = choice.get("routed_experts")
        if len(logprobs) != len(token_ids):
            raise ServerError(f"completion: found {len(logprobs)} log-probabilities of {len(token_ids)} tokens")
        return Completion(
            token_ids,
            logprobs,
            versions_of(spans, len(token_ids)),
            reason,  # type: ignore[arg-type]
            None if experts is None else read_experts(experts),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"completion: found a malformed answer ({error!r}); allowed is that of vLLM 0.32") from error


def read_experts(text: str) -> Any:
    """Routed experts from base64 of NumPy's file format (version 1.0), as an int16 tensor [tokens, layers, k].

    Raises:
        ServerError: the content is malformed.
    """
    import torch

    content = base64.b64decode(text)
    try:
        if content[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError(f"magic {content[:8]!r}")
        (length,) = struct.unpack_from("<H", content, 8)
        header: Mapping[str, Any] = ast.literal_eval(content[10 : 10 + length].decode("latin-1").strip())
        if header["fortran_order"]:
            raise ValueError("Fortran order")
        values = torch.frombuffer(bytearray(content[10 + length :]), dtype=getattr(torch, ITEM_TYPES[header["descr"]]))
        return values.view(header["shape"]).to(torch.int16)
    except (ValueError, KeyError, RuntimeError, struct.error, SyntaxError) as error:
        raise ServerError(
            f"routed experts: found malformed content ({error!r}); allowed is that of vLLM 0.32"
        ) from error
