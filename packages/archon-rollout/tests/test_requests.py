import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import ConfigError, DataError, ModelError
from archon_rollout.model_limits import ModelLimits
from archon_rollout.requests import check_requests, token_limit

LIMITS = ModelLimits(vocab_size=10, max_positions=32)


def request(prompt=(1, 2), seeds=(0,), **options) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), GenerationConfig(**{"max_new_tokens": 8, **options}), tuple(seeds))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, r"n_samples: found 0; allowed are numbers from 1"),
        ({"max_new_tokens": -1}, r"max_new_tokens: found -1; allowed are numbers from"),
        ({"min_new_tokens": -1}, r"min_new_tokens: found -1; allowed are numbers from 0"),
        ({"min_new_tokens": 9}, r"min_new_tokens: found 9, above max_new_tokens 8; lower it"),
        ({"temperature": 0.0}, r"temperature: found 0.0; allowed are numbers above 0; .*greedy=true"),
        ({"temperature": float("nan")}, r"temperature: found nan"),
        ({"top_p": 0.0}, r"top_p: found 0.0; allowed are numbers above 0 up to 1"),
        ({"top_p": 1.1}, r"top_p: found 1.1"),
        ({"frequency_penalty": 2.1}, r"frequency_penalty: found 2.1; allowed are numbers from -2 up to 2"),
        ({"stop": ["a", ""]}, r"stop: found \['a', ''\]; allowed are lists of texts with at least one character each"),
        ({"top_k": -1}, r"top_k: found -1; allowed are numbers from 0; 0 keeps all"),
    ],
)
def test_options_out_of_range_name_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message):
        check_requests([request(**options)], LIMITS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(prompt=()), "request 1: found a prompt of 0 tokens; allowed is at least 1"),
        (request(prompt=(1, 10)), "request 1: found prompt token id 10, allowed are 0 to 9; use the model's tokenizer"),
        (request(prompt=(-1,)), "request 1: found prompt token id -1"),
        (request(stop_token_ids=[12]), "request 1: found stop token id 12"),
        (request(stop=["a"]), r"request 1: found stop=\['a'\] and no decode function.*or use stop_token_ids"),
        (request(seeds=(0, 1)), "request 1: found 2 seeds for n_samples=1"),
        (request(prompt=(1,) * 9, max_tokens=8), r"9 tokens, allowed are 8 with the completion.*raise max_tokens"),
        (request(stop_token_ids=list(range(10)), min_new_tokens=1), "every token of the vocabulary in stop_token_ids"),
    ],
)
def test_prompts_that_cannot_be_served_are_named_by_their_request(bad, message):
    with pytest.raises(DataError, match=message):
        check_requests([request(), bad], LIMITS)


def test_a_sequence_that_could_pass_the_models_positions_is_refused_with_the_option_that_prevents_it():
    check_requests([request(prompt=(1,) * 24)], LIMITS)
    with pytest.raises(
        ModelError, match=r"25 tokens and up to 8 new ones, the model allows 32 together.*max_tokens to 32"
    ):
        check_requests([request(prompt=(1,) * 25)], LIMITS)
    check_requests([request(prompt=(1,) * 25, max_tokens=32)], LIMITS)
    with pytest.raises(
        ModelError, match=r"40 tokens, the model allows 32 \(max_position_embeddings\); shorten the prompt"
    ):
        check_requests([request(prompt=(1,) * 40)], LIMITS)


def test_rotary_kinds_that_depend_on_the_final_length_are_refused_above_their_threshold():
    limits = ModelLimits(vocab_size=10, length_dependent_above=16)
    check_requests([request(prompt=(1,) * 8)], limits)
    with pytest.raises(ModelError, match=r"allows 16 together.*depends on the final length.*at most 7"):
        check_requests([request(prompt=(1,) * 9)], limits)


def test_the_token_limit_is_the_tighter_of_new_tokens_and_all_tokens():
    assert token_limit(request(max_tokens=None)) == 8
    assert token_limit(request(max_tokens=20)) == 8
    assert token_limit(request(max_tokens=5)) == 3
    assert token_limit(request(max_tokens=2)) == 0
