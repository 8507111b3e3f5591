"""Rounds of collective generation: which requests share a round, and works that fail or send several requests."""

from __future__ import annotations

import asyncio

import pytest
from thread_ranks import run_on_ranks

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.errors import DataError, TrainingError
from archon_core.ranks.ranks import DataRanks
from archon_rl.workflows.lockstep import run_in_lockstep
from archon_rl.workflows.together import together


class Echo:
    """An engine that answers with the last token of a prompt plus one, and keeps its rounds."""

    version = 7

    def __init__(self):
        self.rounds = []

    def generate(self, requests):
        self.rounds.append([request.prompt_ids for request in requests])
        assert all(request.decode is decode for request in requests)
        return [[Completion((request.prompt_ids[-1] + 1,), (0.0,), (7,), "stop")] for request in requests]


def decode(ids):
    return ""


async def ask(client, *prompt):
    [completion] = await client.generate(GenerationRequest(prompt, GenerationConfig(), (0,)))
    return completion.token_ids[0]


async def ask_twice(client, start):
    return await ask(client, start, await ask(client, start))


def test_works_ask_in_rounds_until_all_have_ended():
    engine = Echo()

    async def work(client, start, turns):
        for _ in range(turns):
            start = await ask(client, start)
        return start, client.version

    works = [lambda client, start=start: work(client, start, start // 10) for start in (10, 20, 30)]
    assert run_in_lockstep(works, engine, DataRanks(), decode) == [(11, 7), (22, 7), (33, 7)]
    assert engine.rounds == [[(10,), (20,), (30,)], [(21,), (31,)], [(32,)]]


def test_requests_that_a_work_makes_at_the_same_time_are_in_one_round():
    engine = Echo()

    async def work(client, start):
        return await together(ask_twice(client, start + place) for place in range(3))

    works = [lambda client, start=start: work(client, start) for start in (10, 20)]
    assert run_in_lockstep(works, engine, DataRanks(), decode) == [[12, 13, 14], [22, 23, 24]]
    assert [len(one) for one in engine.rounds] == [6, 6]


def test_a_round_waits_for_works_that_await_something_else():
    engine = Echo()

    async def slow(client):
        await asyncio.sleep(0.05)
        return await ask(client, 1)

    works = [lambda client: ask_twice(client, 10), slow]
    assert run_in_lockstep(works, engine, DataRanks(), decode) == [12, 2]
    assert [len(one) for one in engine.rounds] == [2, 1]


def test_a_cancelled_request_is_not_sent():
    engine = Echo()

    async def impatient(client):
        asking = asyncio.ensure_future(ask(client, 99))
        await asyncio.sleep(0)
        asking.cancel()
        return await ask(client, 1)

    assert run_in_lockstep([impatient], engine, DataRanks(), decode) == [2]
    assert engine.rounds == [[(1,)]]


def test_no_works_ask_nothing():
    engine = Echo()
    assert run_in_lockstep([], engine, DataRanks(), decode) == []
    assert engine.rounds == []


def test_an_error_ends_the_other_works():
    ended = []

    async def waits(client):
        try:
            return await ask(client, 1)
        finally:
            ended.append(True)

    async def fails(client):
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        run_in_lockstep([waits, fails], Echo(), DataRanks(), decode)
    assert ended == [True]


def test_a_work_that_raises_cancelled_error_is_an_error_of_all_ranks():
    errors = {}

    async def cancels(client):
        raise asyncio.CancelledError

    def rank(here):
        data_ranks = DataRanks(here.rank, 2, here, (0, 1))
        work = cancels if here.rank else lambda client: ask(client, 1)
        try:
            run_in_lockstep([work], Echo(), data_ranks, decode)
        except TrainingError as error:
            errors[here.rank] = str(error)

    run_on_ranks(2, rank)
    found = "a workflow raised CancelledError although nobody cancelled it"
    assert {rank: found in text for rank, text in errors.items()} == {0: True, 1: True}


def test_the_others_of_a_group_are_cancelled_after_an_error():
    ended = []

    async def waits():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def fails():
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        asyncio.run(together([waits(), fails()]))
    assert ended == [True]


def test_ranks_of_one_data_rank_answer_its_requests_together_and_errors_reach_all():
    """Data ranks 0 and 1 of two processes each; only data rank 1 has a second request, and then an error."""
    engines, results, errors = {}, {}, {}

    def rank(here):
        data_ranks = DataRanks(here.rank // 2, 2, here, (0, 2))
        engine = engines[here.rank] = Echo()
        works = [lambda client: ask(client, 10)] if here.rank < 2 else [lambda client: ask_twice(client, 20)]
        results[here.rank] = run_in_lockstep(works, engine, data_ranks, decode)

        async def fails(client):
            raise DataError("no")

        try:
            run_in_lockstep([fails if here.rank == 2 else works[0]], Echo(), data_ranks, decode)
        except DataError as error:
            errors[here.rank] = str(error)

    run_on_ranks(4, rank)
    assert results == {0: [11], 1: [], 2: [22], 3: []}
    assert engines[0].rounds == engines[1].rounds == [[(10,)], []]
    assert engines[2].rounds == engines[3].rounds == [[(20,)], [(20, 21)]]
    assert errors == {rank: "no" if rank == 2 else "rank 2 failed: no" for rank in range(4)}
