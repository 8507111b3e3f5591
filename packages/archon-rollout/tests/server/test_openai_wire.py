"""OpenAI's bodies: what they mean here, and what is refused."""

from dataclasses import dataclass

import pytest

from archon_core.errors import ArchonError, DataError, ModelError
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_rollout.model_limits import ModelLimits
from archon_rollout.server.openai_text import TextSide
from archon_rollout.server.openai_wire import parse_chat, parse_completion


@dataclass
class Letters:
    chat_template: str | None = "a template"
    eos_token_id, unk_token_id = 20, None

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - 97 for c in text]

    def apply_chat_template(self, messages, **_):
        return "".join(message["content"] for message in messages)


def side(tokenizer=None, reach=64) -> TextSide:
    return TextSide("tiny", ModelLimits(23, reach), tokenizer or Letters(), end_tokens(20, ModelEnds("list", (21,))))


def test_a_completion_body_becomes_requests():
    call = parse_completion(
        {
            "model": "x",
            "prompt": ["ab", [1, 2, 3]],
            "n": 2,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 4,
        },
        side(),
    )
    assert [request.prompt_ids for request in call.requests] == [(0, 1), (1, 2, 3)]
    config = call.requests[0].config
    assert (config.n_samples, config.max_new_tokens, config.temperature, config.top_p) == (2, 5, 0.5, 0.9)
    assert config.stop_token_ids == [20, 21]
    seeds = [seed for request in call.requests for seed in request.seeds]
    assert len(set(seeds)) == 4
    again = parse_completion({"prompt": ["ab", [1, 2, 3]], "n": 2, "seed": 4}, side())
    assert [seed for request in again.requests for seed in request.seeds] == seeds
    other = parse_completion({"prompt": "ab"}, side())
    assert other.requests[0].seeds != parse_completion({"prompt": "ab"}, side()).requests[0].seeds


def test_a_temperature_of_0_is_greedy_and_defaults_are_openais():
    [request] = parse_completion({"prompt": "ab", "temperature": 0}, side()).requests
    assert request.config.greedy
    assert request.config.max_new_tokens == 16
    assert parse_completion({"prompt": "ab"}, side(reach=10)).requests[0].config.max_new_tokens == 8
    [chat] = parse_chat({"messages": [{"role": "user", "content": "abc"}]}, side()).requests
    assert chat.prompt_ids == (0, 1, 2)
    assert chat.config.max_new_tokens == 61


def test_stop_texts_end_single_samples_so_each_is_a_request():
    call = parse_completion({"prompt": "ab", "n": 3, "stop": ["x", "y"], "seed": 1}, side())
    assert [len(request.seeds) for request in call.requests] == [1, 1, 1]
    together = parse_completion({"prompt": "ab", "n": 3, "seed": 1}, side())
    assert [seed for request in call.requests for seed in request.seeds] == list(together.requests[0].seeds)


def test_fields_that_ask_for_nothing_pass():
    parse_completion(
        {"prompt": "a", "echo": False, "presence_penalty": 0, "logit_bias": None, "best_of": 1, "user": "me"}, side()
    )


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (parse_completion, {"prompt": "a", "max_token": 3}, "unknown field 'max_token'; did you mean 'max_tokens'"),
        (parse_completion, {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty: found 0.5, which this server"),
        (parse_completion, {"prompt": "a", "echo": True}, "echo: found True"),
        (parse_completion, {"prompt": "a", "logprobs": 5}, "logprobs: found 5; allowed is 0"),
        (parse_completion, {"prompt": "a", "max_tokens": 0}, "max_tokens: found 0; allowed are numbers from 1"),
        (parse_chat, {"messages": [], "max_completion_tokens": -1}, "max_completion_tokens: found -1; allowed are"),
        (parse_completion, {"prompt": "a", "n": 129}, "n: found 129; allowed are 1 to 128; send several requests"),
        (parse_completion, {"prompt": "a", "n": 0}, "n: found 0; allowed are 1 to 128"),
        (parse_completion, {"prompt": []}, "prompt: allowed are a text, a list of token ids"),
        (parse_completion, {"prompt": [[1], "a", 3]}, "prompt: allowed are"),
        (parse_completion, {"prompt": "a", "stop": ""}, "stop: found an empty text"),
        (parse_completion, {"prompt": "a", "max_tokens": 64}, "max_tokens: found 64 .*allowed is at most 63"),
        (parse_completion, {"prompt": "a" * 64}, "prompt: found 64 tokens; the model allows 64"),
        (parse_chat, {"messages": [{"role": "user", "content": None}]}, r"messages\[0\]: content: found None; allowed"),
        (parse_chat, {"messages": [{"content": "a"}]}, r"messages\[0\]: found no 'role'; allowed are objects with"),
        (parse_chat, {"messages": [], "tools": [{"type": "function"}]}, "tool_choice: found None with tools; allowed"),
        (parse_chat, {"messages": [], "tool_choice": "required"}, "tool_choice: found 'required'; allowed is 'none'"),
        (parse_chat, {"prompt": "a"}, "unknown field 'prompt'"),
    ],
)
def test_what_the_server_does_not_do_is_refused_by_name(parse, body, message):
    with pytest.raises((DataError, ModelError), match=message):
        parse(body, side())


def test_text_needs_a_tokenizer_and_chats_a_template():
    ids_only = TextSide("tiny", ModelLimits(23, 64))
    assert parse_completion({"prompt": [1, 2]}, ids_only).requests[0].prompt_ids == (1, 2)
    with pytest.raises(DataError, match="this model has no tokenizer; send token ids"):
        parse_completion({"prompt": "ab"}, ids_only)
    with pytest.raises(ArchonError, match="without a chat template"):
        parse_chat({"messages": [{"role": "user", "content": "a"}]}, side(Letters(chat_template=None)))
