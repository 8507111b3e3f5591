"""The workflow ``tools``: calls, results and token ids, with scripted answers."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from chat_tokenizers import CHATML, chat_tokenizer
from scripted_client import ALPHABET, ScriptedClient, build_encoder, build_parts

from archon_core.contracts.rollout import Completion
from archon_core.contracts.workflows import NO_VERSION
from archon_core.errors import ConfigError, RefusedRequestError
from archon_core.seeding import derive_seed
from archon_rl.rewards.arithmetic import final_number_reward
from archon_rl.tokenization import characters_tokenizer
from archon_rl.workflows.tool_options import ToolsOptions
from archon_rl.workflows.tool_use import tools

RECORD = {"question": "6*7=", "answer": "42"}
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }}{% endfor %}<|im_end|>\n{% endif %}"
    + CHATML
)


class CallingClient(ScriptedClient):
    """Ends an answer after a stop text of the request, without the end-of-text token."""

    async def generate(self, request, *, group=""):
        found = await super().generate(request, group=group)
        stops = tuple(request.config.stop or ())
        return [self.without_end(one) if stops and self.text(one).endswith(stops) else one for one in found]

    def text(self, completion: Completion) -> str:
        return self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)

    def without_end(self, completion: Completion) -> Completion:
        return Completion(completion.token_ids[:-1], completion.logprobs[:-1], completion.versions[:-1], "stop")


def plain_encoder():
    return build_encoder(characters_tokenizer([ALPHABET + "[]()<>*/_EN"]))


def build(encoder, *, reward=final_number_reward, use_chat_template=True, **options):
    config = SimpleNamespace(
        tools=ToolsOptions(**options),
        tokenizer=SimpleNamespace(use_chat_template=use_chat_template),
        data=SimpleNamespace(prompt_key="question"),
    )
    return tools(config, build_parts(encoder, reward, max_new_tokens=64))


def converse(encoder, answer, *, seeds=(5,), client=None, record=RECORD, **options):
    workflow = build(encoder, **options)
    client = client or CallingClient(encoder.tokenizer, answer)
    try:
        return client, asyncio.run(workflow.run(client, record, seeds))
    finally:
        workflow.box.close()


def in_order(*answers):
    """The answer by the number of results that the prompt shows."""
    return lambda prompt, seed: answers[prompt.count("]") + prompt.count("tool\n")]


def hermes(expression):
    return f'<tool_call>\n{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}\n</tool_call>'


def test_in_the_plain_form_the_result_continues_the_text_and_only_sampled_tokens_are_trained_on():
    encoder = plain_encoder()
    client, [one] = converse(encoder, in_order("so [calculator(6*7)->", "42"), tool_call_parser="toolformer")

    def ids(text):
        return encoder.tokenizer.encode(text, add_special_tokens=False)

    end = encoder.tokenizer.eos_token_id
    parts = [
        (list(encoder.encode_prompt(RECORD)), False),
        (ids("so [calculator(6*7)->"), True),
        (ids("42]"), False),
        ([*ids("42"), end], True),
    ]
    assert list(one.token_ids) == [token for part, _ in parts for token in part]
    assert list(one.loss_mask) == [sampled for part, sampled in parts for _ in part]
    assert {version for version, sampled in zip(one.versions, one.loss_mask, strict=True) if sampled} == {3}
    assert {version for version, sampled in zip(one.versions, one.loss_mask, strict=True) if not sampled} == {
        NO_VERSION
    }
    assert (one.reward, one.truncated) == (1.0, False)
    assert one.metadata == {"turns": 2, "tool_calls": 1, "tool_failures": 0}
    assert [request.seeds for request in client.requests] == [(5,), (derive_seed(5, "turn", 1),)]
    assert client.requests[1].prompt_ids == one.token_ids[: len(client.requests[1].prompt_ids)]
    assert client.requests[0].config.stop == ["->"]


def test_the_reward_gets_the_last_turn_alone():
    seen = []

    def reward(prompt, completion, record):
        seen.append((prompt, completion))
        return 0.5

    _, [one] = converse(
        plain_encoder(), in_order("[calculator(6*7)->", "is 42"), reward=reward, tool_call_parser="toolformer"
    )
    assert seen == [("6*7=", "is 42")]
    assert one.reward == 0.5


def test_a_chat_template_renders_tools_and_results():
    encoder = build_encoder(chat_tokenizer(WITH_TOOLS))
    _, [one] = converse(encoder, in_order("First. " + hermes("6*7"), "42"), record={"question": "6*7", "answer": "42"})
    decoded = encoder.tokenizer.decode(one.token_ids)
    assert decoded == (
        "<|im_start|>system\ncalculator<|im_end|>\n<|im_start|>user\n6*7<|im_end|>\n<|im_start|>assistant\n"
        f"First. {hermes('6*7')}<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
    )
    sampled = [token for token, mask in zip(one.token_ids, one.loss_mask, strict=True) if mask]
    assert encoder.tokenizer.decode(sampled) == f"First. {hermes('6*7')}<|im_end|>42<|im_end|>"
    assert one.reward == 1.0


def test_several_calls_of_one_answer_have_results_in_order_and_problems_are_told_to_the_model():
    encoder = build_encoder(chat_tokenizer(WITH_TOOLS))
    answer = hermes("1+1") + hermes("1/0") + "<tool_call>{</tool_call>"
    _, [one] = converse(encoder, lambda prompt, seed: "42" if "tool\n" in prompt else answer)
    decoded = encoder.tokenizer.decode(one.token_ids)
    results = [part.partition("<|im_end|>")[0] for part in decoded.split("<|im_start|>tool\n")[1:]]
    assert results[:2] == ["2", "Error: division by zero"]
    assert results[2].startswith("Error: tool call 3: invalid JSON: Expecting property name")
    assert one.metadata == {"turns": 2, "tool_calls": 2, "tool_failures": 2}


def test_calls_in_the_reasoning_do_not_count():
    encoder = build_encoder(chat_tokenizer(WITH_TOOLS))
    _, [one] = converse(encoder, lambda prompt, seed: f"<think>{hermes('1+1')}</think>42")
    assert one.metadata["tool_calls"] == 0
    _, [one] = converse(
        encoder, lambda prompt, seed: f"<think>{hermes('1+1')}</think>42", reasoning_parser=None, max_turns=2
    )
    assert one.metadata["tool_calls"] == 1


def test_special_tokens_of_a_format_are_read():
    tokenizer = chat_tokenizer(WITH_TOOLS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>"]})
    call = 'Well. <|python_tag|>{"name": "calculator", "parameters": {"expression": "6*7"}}'
    answers = lambda prompt, seed: "42" if "tool\n" in prompt else call  # noqa: E731
    _, [one] = converse(build_encoder(tokenizer), answers, tool_call_parser="llama3")
    assert one.metadata == {"turns": 2, "tool_calls": 1, "tool_failures": 0}


def test_turns_and_calls_are_limited():
    encoder = plain_encoder()
    client, [one] = converse(
        encoder, lambda prompt, seed: "[calculator(6*7)->", tool_call_parser="toolformer", max_turns=3, max_calls=1
    )
    assert len(client.requests) == 3
    assert one.metadata == {"turns": 3, "tool_calls": 1, "tool_failures": 1}
    decoded = encoder.tokenizer.decode(one.token_ids, skip_special_tokens=True)
    assert decoded.endswith(
        "->42][calculator(6*7)->Error no calls are allowed after 1 answer without tools][calculator(6*7)->"
    )


def test_an_answer_that_the_length_limit_cut_calls_no_tool():
    client, [one] = converse(plain_encoder(), lambda prompt, seed: "[calculator(6*7)...", tool_call_parser="toolformer")
    assert len(client.requests) == 1
    assert one.truncated


def test_a_conversation_that_becomes_too_long_is_truncated():
    class Small(CallingClient):
        async def generate(self, request, *, group=""):
            if len(request.prompt_ids) > 20:
                raise RefusedRequestError("too long")
            return await super().generate(request, group=group)

    encoder = plain_encoder()
    client = Small(encoder.tokenizer, lambda prompt, seed: "[calculator(6*7)->")
    _, [one] = converse(encoder, None, client=client, tool_call_parser="toolformer")
    assert one.truncated
    assert one.metadata["turns"] == len(client.requests) == 1


def test_samples_go_on_independently():
    def answer(prompt, seed):
        return "41" if seed == 1 else "[calculator(6*7)->" if "]" not in prompt else "42"

    client, [wrong, right] = converse(plain_encoder(), answer, seeds=(1, 2), tool_call_parser="toolformer")
    assert [len(request.seeds) for request in client.requests] == [2, 1]
    assert ([wrong.reward, right.reward], wrong.metadata["turns"]) == ([0.0, 1.0], 1)


def test_characters_that_the_tokenizer_lacks_are_left_out_of_results():
    encoder = build_encoder(characters_tokenizer(["0123456789=[]()->*calculator"]))
    _, [one] = converse(
        encoder, lambda p, s: "[calculator(1*)->" if "]" not in p else "0", tool_call_parser="toolformer"
    )
    decoded = encoder.tokenizer.decode(one.token_ids, skip_special_tokens=True)
    known = "".join(letter for letter in "Error: invalid syntax: invalid syntax" if letter in "calculator")
    assert decoded == f"6*7=[calculator(1*)->{known}]0"


def test_a_template_that_does_not_describe_tools_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        build(build_encoder(chat_tokenizer(CHATML))).box.close()
    assert "the tokenizer's chat template does not describe tools" in caplog.text


@pytest.mark.parametrize(
    ("template", "options", "problem"),
    [
        (CHATML, {"tool_call_parser": "toolformer"}, "found 'toolformer', whose results continue the line of the call"),
        ("{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}",
         {}, "workflow: found 'tools', and the chat template failed"),
    ],
)  # fmt: skip
def test_what_the_template_cannot_do_is_an_error(template, options, problem):
    with pytest.raises(ConfigError, match=problem):
        build(build_encoder(chat_tokenizer(template)), **options)


def test_options_are_checked():
    problems = list(
        ToolsOptions(names=["calculater", "gone:tool"], tool_call_parser="quen", reasoning_parser="x").problems()
    )
    assert [name for name, _ in problems] == ["names", "names", "tool_call_parser", "reasoning_parser"]
    assert "did you mean 'calculator'" in problems[0][1]
    assert problems[1][1].startswith("found no gone.py in ")
    assert list(ToolsOptions(names=[]).problems()) == [("names", "found none; name at least one, or set workflow=rlvr")]
    assert list(ToolsOptions().problems()) == []
