"""``multi_turn``: attempts, masks, rewards and token ids, with scripted answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from chat_tokenizers import CHATML, chat_tokenizer
from scripted_client import ScriptedClient, build_encoder, build_parts

from archon_core.contracts.workflows import NO_VERSION
from archon_core.errors import ConfigError, RefusedRequestError
from archon_core.seeding import derive_seed
from archon_rl.rewards.calls import Outcome
from archon_rl.workflows.multi_turn import multi_turn
from archon_rl.workflows.options import MultiTurnOptions
from archon_rl.workflows.rewards import RewardsFailedError

RECORD = {"question": "1+1=", "answer": "2"}


def is_right(prompt, completion, record):
    return 1.0 if completion == record["answer"] else 0.0


def build(encoder, reward=is_right, *, use_chat_template=True, gconfig=None, **options):
    config = SimpleNamespace(
        multi_turn=MultiTurnOptions(**{"feedback": " no. ", **options}),
        tokenizer=SimpleNamespace(use_chat_template=use_chat_template),
        data=SimpleNamespace(prompt_key="question"),
    )
    return multi_turn(config, build_parts(encoder, reward, **(gconfig or {})))


def answers(*texts):
    """By the number of earlier answers in the conversation: the rejections that the prompt shows."""
    return lambda prompt, seed: texts[min(prompt.count("no."), len(texts) - 1)]


def converse(script, *, seeds=(5,), encoder=None, **options):
    encoder = encoder or build_encoder()
    client = ScriptedClient(encoder.tokenizer, script)
    trajectories = asyncio.run(build(encoder, **options).run(client, RECORD, seeds))
    return client, trajectories


def test_a_right_answer_ends_the_conversation():
    client, [one] = converse(answers("2"))
    assert len(client.requests) == 1
    assert one.reward == 1.0
    assert one.metadata == {"turns": 1, **{f"solved_by_turn_{turn}": True for turn in (1, 2, 3, 4)}}


def test_feedback_and_further_answers_follow_wrong_ones_and_only_answers_are_trained_on():
    encoder = build_encoder()
    tokenizer, end = encoder.tokenizer, encoder.tokenizer.eos_token_id
    client, [one] = converse(answers("3", "1...", "2"), encoder=encoder, turn_discount=0.5)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    prompt, feedback = list(encoder.encode_prompt(RECORD)), ids(" no. ")
    parts = [
        (prompt, False),
        ([*ids("3"), end], True),
        (feedback, False),
        (ids("1"), True),
        ([end, *feedback], False),  # the second answer was cut off, so the end of text is not the policy's
        ([*ids("2"), end], True),
    ]
    assert list(one.token_ids) == [token for part, _ in parts for token in part]
    assert list(one.loss_mask) == [sampled for part, sampled in parts for _ in part]
    assert [version for version, sampled in zip(one.versions, one.loss_mask, strict=True) if sampled] == [3] * 5
    assert {version for version, sampled in zip(one.versions, one.loss_mask, strict=True) if not sampled} == {
        NO_VERSION
    }
    assert one.reward == 0.25  # 1 * 0.5 ** 2
    assert one.truncated is False
    assert one.metadata == {
        "turns": 3,
        "solved_by_turn_1": False,
        "solved_by_turn_2": False,
        "solved_by_turn_3": True,
        "solved_by_turn_4": True,
    }
    # The log-probabilities are those of each answer's request.
    seeds = [request.seeds[0] for request in client.requests]
    assert seeds == [5, derive_seed(5, "turn", 1), derive_seed(5, "turn", 2)]
    expected = [-0.01 * (seeds[0] + 1), -0.01 * (seeds[0] + 1) - 0.001, -0.01 * (seeds[1] + 1)]
    sampled = [value for value, sampled in zip(one.logprobs, one.loss_mask, strict=True) if sampled]
    assert sampled[:3] == pytest.approx(expected, rel=1e-12)
    assert {value for value, sampled in zip(one.logprobs, one.loss_mask, strict=True) if not sampled} == {0.0}


def test_each_request_continues_the_tokens_of_the_one_before():
    client, [one] = converse(answers("3", "1", "2"))
    first, second, third = (request.prompt_ids for request in client.requests)
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert one.token_ids[: len(third)] == third
    assert [request.config.n_samples for request in client.requests[1:]] == [1, 1]


def test_attempts_end_at_max_turns():
    client, [one] = converse(answers("3"), max_turns=2)
    assert len(client.requests) == 2
    assert (one.reward, one.metadata) == (0.0, {"turns": 2, "solved_by_turn_1": False, "solved_by_turn_2": False})


def test_the_samples_of_a_record_go_on_independently():
    def script(prompt, seed):
        return "2" if seed == 1 or "no." in prompt else "3"

    client, [right, corrected] = converse(script, seeds=(1, 2))
    assert [len(request.seeds) for request in client.requests] == [2, 1]
    assert (right.reward, right.metadata["turns"]) == (1.0, 1)
    assert (corrected.reward, corrected.metadata["turns"]) == (1.0, 2)


def test_a_negative_reward_is_wrong_and_what_counts_as_right_is_an_option():
    def reward(prompt, completion, record):
        return {"3": -1.0, "1": 0.25, "2": 1.0}[completion]

    _, [one] = converse(answers("3", "1", "2"), reward=reward)
    assert (one.reward, one.metadata["turns"]) == (0.25, 2)
    _, [one] = converse(answers("3", "1", "2"), reward=reward, solved_above=0.5)
    assert (one.reward, one.metadata["turns"]) == (1.0, 3)


def test_the_feedback_may_repeat_the_prompt():
    client, _ = converse(answers("3", "2"), feedback=" no. {prompt}")
    assert build_encoder().tokenizer.decode(client.requests[1].prompt_ids).endswith(" no. 1+1=")


def test_a_chat_template_renders_the_feedback_as_a_users_message():
    encoder = build_encoder(chat_tokenizer(CHATML))
    _client, [one] = converse(answers("3", "2"), encoder=encoder)
    decoded = encoder.tokenizer.decode(one.token_ids)
    assert decoded == (
        "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n<|im_start|>user\n no. <|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>"
    )
    sampled = [token for token, mask in zip(one.token_ids, one.loss_mask, strict=True) if mask]
    assert encoder.tokenizer.decode(sampled) == "3<|im_end|>2<|im_end|>"


def test_without_the_template_the_feedback_is_plain_text():
    encoder = build_encoder(chat_tokenizer(CHATML))
    encoder = type(encoder)(encoder.tokenizer, "question", "answer", use_chat_template=False)
    _, [one] = converse(answers("3", "2"), encoder=encoder, use_chat_template=False)
    assert encoder.tokenizer.decode(one.token_ids) == "1+1=3<|im_end|> no. 2<|im_end|>"


def test_a_conversation_that_no_longer_fits_ends_as_truncated_with_its_last_answer():
    class Small(ScriptedClient):
        async def generate(self, request, *, group=""):
            if len(request.prompt_ids) > 16:
                raise RefusedRequestError("too long")
            return await super().generate(request, group=group)

    encoder = build_encoder()
    client = Small(encoder.tokenizer, answers("3"))
    [one] = asyncio.run(build(encoder, max_turns=8).run(client, RECORD, (5,)))
    assert one.metadata["turns"] == len(client.requests) == 2
    assert one.truncated
    assert one.loss_mask[-1]


def test_a_failed_reward_of_a_later_turn_fails_the_group():
    def reward(prompt, completion, record):
        return 0.0 if completion == "3" else Outcome(error="no number")

    with pytest.raises(RewardsFailedError, match="no number"):
        converse(answers("3", "2"), reward=reward, seeds=(1, 2))


def test_a_run_without_a_reward_is_refused():
    with pytest.raises(ConfigError, match=r"found multi_turn without a reward.*; set reward, or workflow=rlvr"):
        build(build_encoder(), None)


def test_feedback_that_the_tokenizer_cannot_encode_is_refused_before_the_first_step():
    with pytest.raises(ConfigError, match=r"multi_turn\.feedback: text 'NO': the tokenizer has no token for 'N'"):
        build(build_encoder(), feedback="NO")
