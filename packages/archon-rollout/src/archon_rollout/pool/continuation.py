"""Continues completions that a server ended early, on any server.

A pause in mode ``abort`` or a drain ends a request with the tokens that it has. The rest is a request of its own, whose
prompt ends with those tokens, so nothing that was generated is lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.seeding import derive_seed


def rest_of(request: GenerationRequest, number: int, begun: Completion) -> GenerationRequest:
    """The request for what is missing of one completion.

    Args:
        request: the request.
        number: of the sample, from 0.
        begun: the tokens so far. Its stop reason is ``abort``.
    """
    options, done = request.config, len(begun.token_ids)
    # max_tokens counts the prompt, which gets longer by as much as the completion gets shorter.
    config = replace(
        options,
        n_samples=1,
        max_new_tokens=options.max_new_tokens - done,
        min_new_tokens=max(0, options.min_new_tokens - done),
    )
    # Without tokens the same seed gives the completion of an undisturbed run.
    seed = derive_seed(request.seeds[number], "continued", done) if done else request.seeds[number]
    return GenerationRequest(request.prompt_ids + begun.token_ids, config, (seed,))


def is_complete(request: GenerationRequest, completion: Completion) -> bool:
    """Whether nothing is missing: an aborted completion may have reached its limit all the same."""
    return completion.stop_reason != "abort" or len(completion.token_ids) >= request.config.max_new_tokens


def joined(begun: Completion, rest: Completion, prompt_length: int) -> Completion:
    """One completion of two parts, each with its own log-probabilities, versions and routed experts.

    Args:
        begun: the first part.
        rest: the second part, of the request that ``rest_of`` made.
        prompt_length: tokens of the original prompt.
    """
    return Completion(
        begun.token_ids + rest.token_ids,
        begun.logprobs + rest.logprobs,
        begun.versions + rest.versions,
        rest.stop_reason,
        _joined_experts(begun.routed_experts, rest.routed_experts, prompt_length + len(begun.token_ids)),
    )


def _joined_experts(begun: Any, rest: Any, n_tokens: int) -> Any:
    """Experts of the first part as they were; the second part's prefill chose again for the same tokens."""
    if begun is None or rest is None:
        return rest
    result = rest.clone()
    # A part has no experts of its last token, which its server never processed.
    result[: n_tokens - 1] = begun
    return result
