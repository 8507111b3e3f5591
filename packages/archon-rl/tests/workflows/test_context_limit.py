"""The longest sequence of a run shortens requests, and refuses those without room for a token."""

from __future__ import annotations

import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import TooLongRequestError
from archon_rl.workflows.context_limit import ContextLimit

LIMIT = ContextLimit(5, "the model's context")


def request(n_prompt: int, **options) -> GenerationRequest:
    return GenerationRequest((1,) * n_prompt, GenerationConfig(max_new_tokens=4, **options), (0,))


def test_a_completion_that_could_become_too_long_is_shortened():
    assert LIMIT.applied(request(1)).config.max_tokens is None
    assert LIMIT.applied(request(3)).config.max_tokens == 5
    assert LIMIT.applied(request(3, max_tokens=4)).config.max_tokens == 4


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (request(6), "found 6 tokens; allowed are 5: the model's context; shorten it"),
        (request(4, max_tokens=3), r"found 4 tokens; allowed are 3: gconfig\.max_tokens=3; shorten it"),
    ],
)
def test_a_prompt_beyond_the_limit_is_too_long(found, message):
    with pytest.raises(TooLongRequestError, match=message):
        LIMIT.applied(found)
