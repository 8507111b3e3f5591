"""The longest completion of a request, and requests that servers of token ids cannot answer."""

from __future__ import annotations

import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import RefusedRequestError, TooLongRequestError
from archon_core.serving.completion_limit import completion_limit


def request(**options) -> GenerationRequest:
    return GenerationRequest((1, 2, 3), GenerationConfig(max_new_tokens=4, **options), (0,))


def test_both_limits_hold():
    assert completion_limit(request(), "vLLM") == 4
    assert completion_limit(request(max_tokens=5), "vLLM") == 2


def test_a_prompt_without_room_for_a_token_is_too_long():
    with pytest.raises(TooLongRequestError, match=r"gconfig\.max_tokens: found 3 with a prompt of 3 tokens"):
        completion_limit(request(max_tokens=3), "vLLM")


def test_stop_texts_are_refused_and_no_matter_of_length():
    with pytest.raises(RefusedRequestError, match=r"gconfig\.stop: found") as refused:
        completion_limit(request(stop=["x"]), "vLLM")
    assert not isinstance(refused.value, TooLongRequestError)
