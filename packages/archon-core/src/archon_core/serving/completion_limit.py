"""The longest completion of a request to a server that is sent token ids only."""

from __future__ import annotations

from archon_core.contracts.rollout import GenerationRequest
from archon_core.errors import RefusedRequestError, TooLongRequestError


def completion_limit(request: GenerationRequest, program: str) -> int:
    """Largest number of tokens to generate.

    Args:
        request: the request.
        program: name of the servers' program, for messages.

    Raises:
        TooLongRequestError: the prompt leaves no room for a token.
        RefusedRequestError: the request has stop texts.
    """
    config = request.config
    if config.stop:
        raise RefusedRequestError(
            f"gconfig.stop: found {config.stop}; allowed with {program} servers is null, because they are sent token "
            "ids only; use gconfig.stop_token_ids"
        )
    limit = config.max_new_tokens
    if config.max_tokens is not None:
        limit = min(limit, config.max_tokens - len(request.prompt_ids))
    if limit < 1:
        raise TooLongRequestError(
            f"gconfig.max_tokens: found {config.max_tokens} with a prompt of {len(request.prompt_ids)} tokens; raise it"
        )
    return limit
