"""What sessions record of random conversations: tokens as they were sampled, each trained on once."""

import asyncio
import random
from collections import Counter

import pytest
from chat_client import ChatClient, sessions
from chat_tokenizers import CHATML, LAST_TURN_THINKS, PLAIN, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.contracts.workflows import NO_VERSION
from archon_rl.agents.chat_requests import parse_chat
from archon_rl.agents.exporting import concat_trajectories, individual_trajectories

TEMPLATES = {"chatml": CHATML, "trimmed": PLAIN, "last turn thinks": LAST_TURN_THINKS, "none": None}
TOKENIZERS = {name: chat_tokenizer(template) for name, template in TEMPLATES.items()}


async def ask(session, messages, **fields):
    """Send a conversation; returns it with the answer, in the form in which OpenAI's clients return it."""
    body = {"messages": messages, **fields}
    answer, piece = await session.answer(parse_chat(body, session.parts.repeatable))
    message = answer.whole([piece])["choices"][0]["message"]
    return answer.id, [*messages, message]


async def random_conversations(session, draw: random.Random, *, branches: bool) -> int:
    """Calls that begin conversations, and continue the last one, or any one if there are branches. Returns the number
    of conversations that began."""
    conversations: list[list[dict]] = []
    n_begun = 0
    for number in range(draw.randrange(1, 7)):
        new = not conversations or draw.random() < 0.3
        before = [] if new else draw.choice(conversations) if branches else conversations[-1]
        added = [{"role": "user", "content": f"{number} plus {draw.randrange(99)}?"}]
        if new and draw.random() < 0.5:
            added.insert(0, {"role": "system", "content": "add"})
        elif not new and draw.random() < 0.3:
            added.insert(0, {"role": "user", "content": "wrong"})
        _, conversation = await ask(session, [*before, *added])
        conversations.append(conversation)
        n_begun += new
    return n_begun


def trained(trajectories) -> Counter:
    """The trained tokens, as (version, place in the answer, token, log-probability): a client's answers differ in
    their versions."""
    found: Counter = Counter()
    for one in trajectories:
        places: Counter = Counter()
        for token, mask, logprob, version in zip(one.token_ids, one.loss_mask, one.logprobs, one.versions, strict=True):
            if mask:
                found[version, places[version], token, logprob] += 1
                places[version] += 1
            else:
                assert (logprob, version) == (0.0, NO_VERSION)
    return found


def sampled(client) -> Counter:
    return Counter(
        (one.versions[0], place, token, logprob)
        for one in client.completions
        for place, (token, logprob) in enumerate(zip(one.token_ids, one.logprobs, strict=True))
    )


@pytest.mark.parametrize("kept", ["hf", "concat"])
@pytest.mark.parametrize("template", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_sampled_token_is_trained_on_once_without_branches(template, kept, seed):
    tokenizer = TOKENIZERS[template]
    client = ChatClient(tokenizer)
    start, _ = sessions(client=client, tokenizer=tokenizer, chat_template_type=kept)
    session = start(seed)
    n_begun = asyncio.run(random_conversations(session, random.Random(seed), branches=False))
    assert len(session.tree.leaves()) == n_begun
    expected = sampled(client)
    assert trained(concat_trajectories(session.tree, 1.0)) == expected
    assert trained(individual_trajectories(session.tree.ordered(), 1.0)) == expected
    assert set(expected.values()) == {1}


@pytest.mark.parametrize("template", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_with_branches_a_trajectory_per_leaf_trains_on_every_answer_of_its_path(template, seed):
    tokenizer = TOKENIZERS[template]
    client = ChatClient(tokenizer)
    start, _ = sessions(client=client, tokenizer=tokenizer, chat_template_type="concat")
    session = start(seed)
    asyncio.run(random_conversations(session, random.Random(seed), branches=True))
    trajectories = concat_trajectories(session.tree, 1.0)
    found = trained(trajectories)
    assert set(found) == set(sampled(client))
    assert trained(individual_trajectories(session.tree.ordered(), 1.0)) == sampled(client)
    leaves = session.tree.leaves()
    assert len(trajectories) == len(leaves)
    paths = Counter(call.completion.versions[0] for leaf in leaves for call in leaf.path)
    assert dict(found) == {key: paths[key[0]] for key in found}
    for leaf, one in zip(leaves, trajectories, strict=True):
        assert one.token_ids == leaf.token_ids
        assert one.metadata["calls"] == [call.id for call in leaf.path]


@pytest.mark.parametrize("template", TOKENIZERS)
def test_a_continued_prompt_is_the_rendering_with_the_sampled_tokens_in_it(template):
    tokenizer = TOKENIZERS[template]
    start, client = sessions(client=ChatClient(tokenizer, script=["35", "36"]), tokenizer=tokenizer)
    session = start()

    async def two_turns():
        _, conversation = await ask(session, [{"role": "user", "content": "12+23="}])
        await ask(session, [*conversation, {"role": "user", "content": "again"}])

    asyncio.run(two_turns())
    first, second = client.requests
    answer = client.completions[0].token_ids
    assert second.prompt_ids[: len(first.prompt_ids) + len(answer)] == first.prompt_ids + answer
    rest = tokenizer.decode(second.prompt_ids[len(first.prompt_ids) + len(answer) :])
    expected = {
        "chatml": "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n",
        "trimmed": "\n\nUSER: again\n\nASSISTANT:",
        "last turn thinks": "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n",
        "none": "again",
    }
    assert rest == expected[template]


def test_where_the_template_drops_earlier_reasoning_hf_begins_a_conversation_and_concat_keeps_it():
    template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
    )
    tokenizer = chat_tokenizer(template)
    prompts = {}
    for kept in ("hf", "concat"):
        client = ChatClient(tokenizer, script=["<think>hm</think>4", "5"])
        start, _ = sessions(client=client, tokenizer=tokenizer, chat_template_type=kept)
        session = start()

        async def two_turns(session=session):
            _, conversation = await ask(session, [{"role": "user", "content": "2+2="}])
            await ask(session, [*conversation, {"role": "user", "content": "plus 1?"}])

        asyncio.run(two_turns())
        prompts[kept] = tokenizer.decode(client.requests[1].prompt_ids)
        assert len(session.tree.leaves()) == (2 if kept == "hf" else 1)
    assert "<think>" not in prompts["hf"]
    assert "assistant\n4<|im_end|>" in prompts["hf"]
    assert "assistant\n<think>hm</think>4<|im_end|>" in prompts["concat"]


def test_parallel_calls_have_seeds_that_do_not_depend_on_their_order():
    def seeds(order):
        start, client = sessions()
        session = start(7)

        async def run():
            await asyncio.gather(*(ask(session, [{"role": "user", "content": text}]) for text in order))

        asyncio.run(run())
        return {request.prompt_ids: request.seeds for request in client.requests}

    assert seeds(["a", "b", "c"]) == seeds(["c", "a", "b"])


def test_equal_calls_of_a_session_have_different_seeds_and_equal_sessions_the_same():
    def seeds(seed):
        start, client = sessions()
        session = start(seed)

        async def run():
            for _ in range(3):
                await ask(session, [{"role": "user", "content": "a"}])

        asyncio.run(run())
        return [request.seeds for request in client.requests]

    assert len(set(seeds(3))) == 3
    assert seeds(3) == seeds(3) != seeds(4)
