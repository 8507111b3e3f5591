"""The workflow ``environment``: rewards, turns, failures and token ids, with scripted answers."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from chat_tokenizers import CHATML, chat_tokenizer
from scripted_client import ScriptedClient, build_encoder, build_parts
from scripted_environments import EVENTS, NAMES

from archon_core.errors import ConfigError
from archon_core.plugins import EnvironmentSpec, registry
from archon_core.seeding import derive_seed
from archon_rl.environments.running import EnvironmentFailedError
from archon_rl.workflows.environment import environment
from archon_rl.workflows.tool_options import EnvironmentOptions


@pytest.fixture(autouse=True)
def _environments():
    EVENTS.clear()
    for name in NAMES:
        registry().add(EnvironmentSpec(f"test_{name}", f"scripted_environments:{name}"))
    yield
    for name in NAMES:
        registry().remove("environment", f"test_{name}")
    assert_all_closed()  # a thread that hangs must not write its events in the next test


def assert_all_closed():
    for _ in range(1000):
        built, closed = (sorted(seed for kind, seed in pairs() if kind == event) for event in ("new", "close"))
        if built == closed:
            return
        time.sleep(0.01)
    pytest.fail(f"an environment stays open: {EVENTS}")


def pairs():
    return [event for event in EVENTS if isinstance(event, tuple)]


def build(encoder, name, **options):
    config = SimpleNamespace(
        environment=EnvironmentOptions(name=name and f"test_{name}", **options),
        tokenizer=SimpleNamespace(use_chat_template=True),
        data=SimpleNamespace(prompt_key="question"),
    )
    return environment(config, build_parts(encoder, None))


def converse(name, script, *, seeds=(5,), encoder=None, **options):
    encoder = encoder or build_encoder()
    client = ScriptedClient(encoder.tokenizer, script)
    workflow = build(encoder, name, **{"options": {"secret": "5"}, **options})
    return client, asyncio.run(workflow.run(client, {"question": "which? "}, seeds))


def search(prompt, seed):
    return {0: "9", 1: "3"}.get(prompt.count("less") + prompt.count("more"), "5")


@pytest.mark.parametrize("name", ["guessing", "async_guessing"])
def test_the_environment_answers_until_it_is_done(name):
    client, [one] = converse(name, search)
    encoder = build_encoder()
    end = encoder.tokenizer.eos_token
    assert encoder.tokenizer.decode(one.token_ids).endswith(f"which? 9{end} less 3{end} more 5{end}")
    sampled = [token for token, mask in zip(one.token_ids, one.loss_mask, strict=True) if mask]
    assert encoder.tokenizer.decode(sampled) == f"9{end}3{end}5{end}"
    assert one.reward == pytest.approx(0.1 + 0.1 + 1.0, rel=1e-12)
    assert one.metadata == {"turns": 3, "done": True, "guesses": 3}
    assert [request.seeds for request in client.requests] == [
        (5,),
        (derive_seed(5, "turn", 1),),
        (derive_seed(5, "turn", 2),),
    ]
    assert EVENTS == [("new", 5), ("close", 5)]


def test_rewards_of_later_steps_are_discounted():
    _, [one] = converse("guessing", search, discount=0.5)
    assert one.reward == pytest.approx(0.1 + 0.5 * 0.1 + 0.25 * 1.0, rel=1e-12)


def test_turns_are_limited():
    _, [one] = converse("guessing", lambda prompt, seed: "9", max_turns=2)
    assert one.metadata == {"turns": 2, "done": False, "guesses": 2}
    assert one.loss_mask[-1]


def test_every_sample_has_an_environment():
    _, trajectories = converse(
        "guessing", lambda prompt, seed: "5" if seed == 1 else search(prompt, seed), seeds=(1, 2)
    )
    assert [one.metadata["turns"] for one in trajectories] == [1, 3]
    assert sorted(EVENTS) == [("close", 1), ("close", 2), ("new", 1), ("new", 2)]


def test_a_chat_template_renders_the_messages():
    encoder = build_encoder(chat_tokenizer(CHATML))
    _, [one] = converse("guessing", search, encoder=encoder)
    assert encoder.tokenizer.decode(one.token_ids).endswith(
        "<|im_start|>user\nwhich? <|im_end|>\n<|im_start|>assistant\n9<|im_end|>\n<|im_start|>user\n less <|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n<|im_start|>user\n more <|im_end|>\n<|im_start|>assistant\n5<|im_end|>"
    )


def test_an_environment_with_tools_gets_calls_as_openai_writes_them():
    call = '<tool_call>{"name": "guess", "arguments": {"n": 5}}</tool_call>'
    answer = f"<think>well</think>Now. {call}<tool_call>?</tool_call>"
    encoder = build_encoder(chat_tokenizer(CHATML))
    converse("with_tools", lambda *_: answer, encoder=encoder, tool_call_parser="qwen", reasoning_parser="qwen3")
    message = EVENTS[1]
    assert message == {
        "role": "assistant",
        "content": "Now.",
        "reasoning_content": "well",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "guess", "arguments": '{"n": 5}'}}],
        "problems": ["tool call 2: invalid JSON: Expecting value at character 0"],
    }


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("hangs", "environment 'test_broken': step gave no answer within 0.2 s"),
        ("exits", r"step of the environment called sys\.exit\(3\)"),
        ("no tuple", "found 1 from step; allowed is .messages, reward, done."),
        ("nan", "nan, True. from step; allowed"),
        ("text", "found 'more' from step; allowed is messages with role and content"),
        ("role", "found .{'content': 'x'}. from step; allowed is messages"),
    ],
)
def test_what_an_environment_must_not_do_fails_the_record(how, problem):
    with pytest.raises(EnvironmentFailedError, match=problem):
        converse("broken", search, options={"how": how}, timeout_seconds=0.2)


def test_exceptions_of_an_environment_are_passed_on_and_the_other_samples_end():
    with pytest.raises(LookupError, match="nothing there"):
        converse("broken", search, options={"how": "raises"}, seeds=(1, 2, 3))
    assert_all_closed()


def test_an_environment_that_cannot_be_built_ends_the_run():
    with pytest.raises(ConfigError, match="install it"):
        converse("unbuildable", search)


def test_an_environment_that_hangs_is_closed_when_it_wakes():
    with pytest.raises(EnvironmentFailedError):
        converse("broken", search, options={"how": "hangs"}, timeout_seconds=0.2)
    assert_all_closed()
    assert EVENTS == [("new", 5), ("close", 5)]


def test_an_environment_whose_coroutine_takes_too_long_is_closed_at_once():
    with pytest.raises(EnvironmentFailedError, match=r"step gave no answer within 0\.1 s"):
        converse("async_broken", search, options={"how": "sleeps"}, timeout_seconds=0.1)
    assert EVENTS == [("new", 5), ("close", 5)]


@pytest.mark.parametrize(("name", "how"), [("broken", "times out"), ("async_broken", "raises")])
def test_a_timeout_of_the_environment_itself_is_passed_on(name, how):
    with pytest.raises(TimeoutError, match="the game server gave no answer"):
        converse(name, search, options={"how": how})
    assert EVENTS == [("new", 5), ("close", 5)]


def test_a_run_without_an_environment_is_refused():
    with pytest.raises(ConfigError, match=r"environment\.name: found null with workflow=environment; name an"):
        build(build_encoder(), None)


def test_options_are_checked():
    problems = dict(EnvironmentOptions(name="gone:new", tool_call_parser="x", reasoning_parser="y").problems())
    assert set(problems) == {"name", "tool_call_parser", "reasoning_parser"}
    assert problems["name"].startswith("found no gone.py in ")
    assert dict(EnvironmentOptions().problems()) == {}
