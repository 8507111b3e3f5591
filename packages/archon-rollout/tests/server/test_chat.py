"""OpenAI's chats with a real tokenizer and chat template.

The oracle is transformers: its token ids of the conversation, and its text of the generated tokens.
"""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import DataError, ModelError
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_rollout.local_engine import LocalEngine
from archon_rollout.model_limits import ModelLimits
from archon_rollout.server.openai_text import TextSide
from archon_rollout.server.openai_wire import parse_chat

TEMPLATE = """
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or message.role == 'assistant' %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>
{%- endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>tool
{{ message.content }}<|im_end|>
{% elif message.role != 'system' or not loop.first %}{{ raise_exception('found the role ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
POSITIONS = 600

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
TURNS = [
    {"role": "system", "content": "Be brief. Ä"},
    {"role": "user", "content": "Was ist 1+2? 😀"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "and 2+2?"},
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)


TOKENIZER = build_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
TEXT = TextSide("chatty", ModelLimits(len(TOKENIZER), POSITIONS), TOKENIZER, end_tokens(END, ModelEnds("list", ())))


def ids_of(messages, tools=None) -> list[int]:
    return TOKENIZER.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )


@pytest.fixture
def chat(tiny, start_server, weights):
    weights = type(weights)(tiny, vocabulary=len(TOKENIZER), max_positions=POSITIONS)
    with start_server(weights, text=TEXT, max_positions=POSITIONS) as server:
        yield Chat(server)


class Chat:
    """Chats with the server of a test."""

    def __init__(self, server) -> None:
        self._server = server
        self.service = server.service

    def whole(self, **body):
        status, answer = self._server.client.post("/v1/chat/completions", {"messages": TURNS, **body})
        assert status == 200, answer
        return answer

    def refused(self, **body) -> dict:
        status, answer = self._server.client.post("/v1/chat/completions", {"messages": TURNS, **body})
        assert status == 400
        return answer["error"]

    def events(self, **body) -> list[dict]:
        status, text = self._server.client.text(
            "POST", "/v1/chat/completions", {"messages": TURNS, "stream": True, **body}
        )
        assert status == 200
        lines = re.findall(r"^data: (.*)$", text, re.MULTILINE)
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def expected(self, messages=TURNS, tools=None, **options):
        """The local engine's completion of the ids that transformers makes of a conversation."""
        config = GenerationConfig(**{"greedy": True, "max_new_tokens": 20, "stop_token_ids": [END], **options})
        asked = GenerationRequest(tuple(ids_of(messages, tools)), config, (0,))
        [[completion]] = LocalEngine(RolloutConfig(), trainer=self._server.weights.active).generate([asked])
        return completion


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": {"c": [2]}}'}}
AS_OBJECT = {**CALL, "function": {"name": "add", "arguments": {"a": 1, "b": {"c": [2]}}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


@pytest.mark.parametrize(
    ("sent", "rendered", "tools"),
    [
        (TURNS[1:2], TURNS[1:2], None),
        (TURNS, TURNS, None),
        (TURNS, TURNS, [TOOL]),
        (TURNS[1:2], TURNS[1:2], [TOOL, TOOL]),
        (
            [TURNS[1], {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, TURNS[3]],
            [TURNS[1], {"role": "assistant", "content": "", "tool_calls": [AS_OBJECT]}, RESULT, TURNS[3]],
            [TOOL],
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "a b"}],
            None,
        ),
    ],
    ids=["one turn", "system and turns", "tools and system", "tools", "calls and results", "parts"],
)
def test_the_prompt_has_the_ids_that_transformers_makes_of_the_conversation(sent, rendered, tools):
    body = {"messages": sent, **({"tools": tools, "tool_choice": "none"} if tools else {})}
    [request] = parse_chat(body, TEXT).requests
    assert list(request.prompt_ids) == ids_of(rendered, tools)


def test_a_chat_is_completed_from_these_ids_until_the_end_of_the_turn(chat):
    for messages, tools in ((TURNS, None), (TURNS[1:], [TOOL])):
        offered = {"tools": tools, "tool_choice": "none"} if tools else {}
        answer = chat.whole(messages=messages, temperature=0, max_tokens=20, **offered)
        expected = chat.expected(messages, tools)
        [choice] = answer["choices"]
        assert choice["token_ids"] == list(expected.token_ids)
        assert choice["message"] == {
            "role": "assistant",
            "content": TOKENIZER.decode(expected.token_ids, skip_special_tokens=True),
        }
        n_prompt, n_new = len(ids_of(messages, tools)), len(expected.token_ids)
        assert answer["usage"] == {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }
        assert (answer["object"], answer["model"], choice["finish_reason"]) == ("chat.completion", "chatty", "length")


def test_the_end_of_the_turn_ends_a_completion_and_is_not_in_its_text(chat, monkeypatch):
    ending = chat.expected().token_ids[4]
    monkeypatch.setattr(type(TEXT), "end_ids", property(lambda _: [ending]))
    [choice] = chat.whole(temperature=0, max_tokens=20)["choices"]
    expected = chat.expected(stop_token_ids=[ending])
    assert choice["finish_reason"] == expected.stop_reason == "stop"
    assert choice["token_ids"] == list(expected.token_ids)
    assert choice["message"]["content"] == TOKENIZER.decode(expected.token_ids[:-1], skip_special_tokens=True)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stops", [False, True], ids=["without stop texts", "stop texts"])
def test_events_make_the_choices_of_a_whole_answer(chat, n, stops):
    body = {"seed": 5, "n": n, "max_tokens": 24, "temperature": 1.4, "logprobs": True}
    if stops:
        text = chat.whole(**body)["choices"][0]["message"]["content"]
        body["stop"] = [text[2:4], "\n\n"]
    whole = chat.whole(**body)
    events = chat.events(**body, stream_options={"include_usage": True})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert len(whole["choices"]) == n
    for index, expected in enumerate(whole["choices"]):
        parts = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == expected["message"]["content"]
        assert [id_ for part in parts for id_ in part.get("token_ids", ())] == expected["token_ids"]
        logprobs = [entry for part in parts for entry in (part.get("logprobs") or {"content": []})["content"]]
        assert logprobs == expected["logprobs"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [expected["finish_reason"]]
    if stops:
        first = whole["choices"][0]
        assert first["finish_reason"] == "stop"
        assert first["message"]["content"] == text[: min(text.find(s) for s in body["stop"] if s in text)]


def test_versions_cover_the_tokens_up_to_a_stop_text(chat, monkeypatch):
    body = {"seed": 5, "max_tokens": 24, "temperature": 1.4}
    text = chat.whole(**body)["choices"][0]["message"]["content"]
    monkeypatch.setattr(chat.service, "cancel", lambda tickets: None)
    body["stop"] = [text[2:4]]
    last = [event["choices"][0] for event in chat.events(**body)][-1]
    choice = chat.whole(**body)["choices"][0]
    assert len(choice["token_ids"]) < 24
    assert choice["weight_versions"] == last["weight_versions"]
    assert choice["weight_versions"] == [{"version": 5, "start": 0, "end": len(choice["token_ids"])}]


def test_samples_of_one_chat_differ_and_depend_on_its_seed(chat):
    def texts(**body):
        return [choice["message"]["content"] for choice in chat.whole(n=4, max_tokens=8, **body)["choices"]]

    assert len(set(texts(seed=1))) > 1
    assert texts(seed=1) == texts(seed=1) != texts(seed=2)


def test_every_generated_token_has_its_logprob(chat):
    [choice] = chat.whole(temperature=0, max_tokens=20, logprobs=True)["choices"]
    expected = chat.expected()
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx(expected.logprobs, abs=1e-9)
    assert [entry["token"] for entry in entries] == [TOKENIZER.decode([token]) for token in expected.token_ids]
    assert all(entry["top_logprobs"] == [] for entry in entries)
    assert chat.whole(temperature=0)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "judge", "content": "x"}]}, "failed on messages with the roles judge: found the role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content: found 'image_url'; allowed"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\]: content: found \[\]; allowed are text"),
        ({"tools": [TOOL]}, "tool_choice: found None with tools; allowed is 'none': answers of this server are text"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice: found 'auto' with tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, r"tool_calls: found \{'id': 'c'\}"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "arguments: found no JSON",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            r"arguments: found \[1\]; allowed is a JSON object",
        ),
        ({"max_tokens": POSITIONS}, "max_tokens: found 600 after a prompt of"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs: found 3; allowed is 0"),
        ({"stream": True, "n": 0}, "n: found 0; allowed are 1 to 128"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_fix(body, message):
    with pytest.raises((DataError, ModelError), match=message):
        parse_chat({"messages": TURNS, **body}, TEXT)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_openais_form_also_before_the_first_event(chat, stream):
    error = chat.refused(tools=[TOOL], stream=stream)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)
    assert error["message"].startswith("chat: tool_choice: found None with tools")
