"""The server's own messages: what arrives is what was sent, and nothing unknown passes."""

import pytest
import torch

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.errors import DataError, ServerError
from archon_rollout.server.wire import completion_data, parse_generate, read_completion, request_data

REQUEST = GenerationRequest(
    (5, 17, 3), GenerationConfig(n_samples=2, max_new_tokens=9, temperature=0.7, stop_token_ids=[2]), (1, 2**60)
)


def test_a_request_arrives_as_it_was_sent():
    call = parse_generate({"requests": [request_data(REQUEST)], "request_id": "a", "routed_experts": True})
    assert (call.requests, call.request_id, call.routed_experts) == ((REQUEST,), "a", True)
    assert request_data(GenerationRequest((1,), GenerationConfig(), (0,))) == {"prompt_ids": [1], "seeds": [0]}


@pytest.mark.parametrize("experts", [None, torch.tensor([[[1, -1]], [[300, 2]]], dtype=torch.int16)])
def test_a_completion_arrives_as_it_was_sent(experts):
    sent = Completion((7, 8, 9), (-0.1, -2.0000000000000004, -3e-300), (4, 4, 6), "abort", experts)
    read = read_completion(completion_data(sent))
    assert read == sent
    assert (read.routed_experts is None) == (experts is None)
    assert experts is None or torch.equal(read.routed_experts, experts)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], r"generate: found \[\]; allowed is a JSON object"),
        ({}, "found no field 'requests'"),
        ({"requests": []}, "empty list of requests"),
        ({"requests": [{}]}, "request 0: found no field 'prompt_ids'"),
        ({"requests": [{"prompt_ids": [1], "seeds": [1], "top_q": 1}]}, "unknown field 'top_q'; did you mean 'top_p'"),
        ({"requests": [{"prompt_ids": "text", "seeds": [1]}]}, "prompt_ids: found 'text'; allowed is a list of an int"),
        ({"requests": [{"prompt_ids": [1.5], "seeds": [1]}]}, "prompt_ids"),
        ({"requests": [{"prompt_ids": [1], "seeds": [1], "greedy": 1}]}, "greedy: found 1; allowed is true or false"),
        ({"requests": [{"prompt_ids": [1], "seeds": [1], "top_k": True}]}, "top_k: found True; allowed is an integer"),
        ({"requests": [{"prompt_ids": [1], "seeds": [1]}], "requestid": "a"}, "did you mean 'request_id'"),
    ],
)
def test_malformed_bodies_are_refused_by_the_name_of_the_field(body, message):
    with pytest.raises(DataError, match=message):
        parse_generate(body)


@pytest.mark.parametrize(
    "change",
    [
        {"versions": [{"version": 1, "start": 0, "end": 1}]},
        {"versions": [{"version": 2, "start": 0, "end": 1}, {"version": 1, "start": 1, "end": 2}]},
        {"token_ids": None},
        {"routed_experts": {"shape": [1, 1, 3], "int16": "AAAA"}},
    ],
)
def test_malformed_answers_are_errors_of_the_server(change):
    sent = completion_data(Completion((7, 8), (-0.1, -0.2), (1, 1), "stop"))
    with pytest.raises(ServerError):
        read_completion({**sent, **change})
