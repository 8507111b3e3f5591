"""Validation of generation requests, and their token limits. All requests are checked before any generation."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.config.rules import broken_rules
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import ConfigError, DataError, ModelError
from archon_rollout.admission import SHORT_TOKENS, Sample
from archon_rollout.model_limits import ModelLimits


def token_limit(request: GenerationRequest) -> int:
    """The largest number of completion tokens of ``request``; negative if the prompt exceeds ``max_tokens``."""
    config = request.config
    if config.max_tokens is None:
        return config.max_new_tokens
    return min(config.max_new_tokens, config.max_tokens - len(request.prompt_ids))


def is_short(requests: Sequence[GenerationRequest]) -> bool:
    """Whether a call asks for one sample of few tokens."""
    if len(requests) != 1 or len(requests[0].seeds) != 1:
        return False
    return len(requests[0].prompt_ids) + token_limit(requests[0]) <= SHORT_TOKENS


def samples_of(
    number: int,
    request: GenerationRequest,
    *,
    streams: bool = False,
    records_experts: bool = False,
    call: int = 0,
    is_short: bool = False,
) -> list[Sample]:
    """The samples of request ``number``; empty if none may have a token."""
    limit = token_limit(request)
    if limit <= 0:
        return []
    return [
        Sample(
            number,
            index,
            seed,
            len(request.prompt_ids),
            limit,
            request.config,
            request.decode,
            streams=streams,
            records_experts=records_experts,
            call=call,
            is_short=is_short,
        )
        for index, seed in enumerate(request.seeds)
    ]


def check_requests(requests: Sequence[GenerationRequest], limits: ModelLimits) -> None:
    """Raise for the first invalid request.

    Raises:
        ConfigError: sampling options are out of range or contradict each other.
        DataError: a prompt is empty, too long, or has ids outside the vocabulary; stop texts have no decode function.
        ModelError: a sequence could become too long for the model.
    """
    for index, request in enumerate(requests):
        check_options(request.config)
        where = f"request {index}"
        if len(request.seeds) != request.config.n_samples:
            raise DataError(
                f"{where}: found {len(request.seeds)} seeds for n_samples={request.config.n_samples}; "
                "give one seed per sample"
            )
        if request.config.stop and request.decode is None:
            raise DataError(
                f"{where}: found stop={request.config.stop} and no decode function, and this engine has no tokenizer; "
                "pass GenerationRequest.decode, or use stop_token_ids"
            )
        _check_ids(request, where, limits.vocab_size)
        _check_length(request, where, limits)


def check_options(config: GenerationConfig) -> None:
    """Raise ConfigError for the first sampling option that is out of range."""
    for name, text in (*broken_rules(config), *config.problems()):
        # A caller in Python may request completions of 0 tokens; a configuration may not.
        if (name, config.max_new_tokens) != ("max_new_tokens", 0):
            raise ConfigError(f"sampling option {name}: {text}")


def _check_ids(request: GenerationRequest, where: str, vocab_size: int) -> None:
    if not request.prompt_ids:
        raise DataError(f"{where}: found a prompt of 0 tokens; allowed is at least 1; add a begin-of-text token")
    for kind, ids in (("prompt", request.prompt_ids), ("stop", request.config.stop_token_ids)):
        outside = [i for i in ids if not 0 <= i < vocab_size]
        if outside:
            raise DataError(
                f"{where}: found {kind} token id {outside[0]}, allowed are 0 to {vocab_size - 1}; "
                "use the model's tokenizer"
            )
    if request.config.min_new_tokens > 0 and len(set(request.config.stop_token_ids)) == vocab_size:
        raise DataError(
            f"{where}: found every token of the vocabulary in stop_token_ids, which min_new_tokens="
            f"{request.config.min_new_tokens} excludes; remove some"
        )


def _check_length(request: GenerationRequest, where: str, limits: ModelLimits) -> None:
    length, n_new = len(request.prompt_ids), token_limit(request)
    for limit, reason in (
        (limits.max_positions, "max_position_embeddings"),
        (
            limits.length_dependent_above,
            "beyond that, its rotary embedding depends on the final length, and cached keys would be wrong",
        ),
    ):
        if limit is not None and length > limit:
            raise ModelError(
                f"{where}: found a prompt of {length} tokens, the model allows {limit} ({reason}); shorten the prompt"
            )
        if limit is not None and length + n_new > limit:
            raise ModelError(
                f"{where}: found a prompt of {length} tokens and up to {n_new} new ones, the model allows {limit} "
                f"together ({reason}); set max_tokens to {limit}, or max_new_tokens to at most {limit - length}"
            )
    if n_new < 0:
        raise DataError(
            f"{where}: found a prompt of {length} tokens, allowed are {request.config.max_tokens} with the completion "
            "(max_tokens); shorten the prompt, or raise max_tokens"
        )
