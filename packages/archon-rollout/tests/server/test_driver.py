"""The driver of our servers, at an address where another program answers."""

from __future__ import annotations

import asyncio

import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.served import driver as module

SERVER = ServerRecord("127.0.0.1:80", "a", "served")
REQUEST = GenerationRequest((3,), GenerationConfig(max_new_tokens=1), (0,))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], r"answered \[\], without 'incarnation'"),
        ({"incarnation": "a"}, "without 'results'"),
        ({"incarnation": "a", "results": 3}, "results that are no lists of completions"),
        ({"incarnation": "a", "results": [[{"token_ids": []}]]}, "found a malformed answer"),
        ({"incarnation": "b", "results": []}, "another incarnation answered: b"),
    ],
)
def test_malformed_answers_are_errors_of_the_server(monkeypatch, answer, message) -> None:
    async def respond(*arguments, **options):
        return answer

    monkeypatch.setattr(module, "call_async", respond)
    monkeypatch.setattr(module, "call", lambda *arguments, **options: answer)
    driver = module.ServedDriver(RolloutConfig())
    with pytest.raises(ServerError, match=message):
        asyncio.run(driver.generate(SERVER, REQUEST, request_id="r", timeout=1.0))
    with pytest.raises(ServerError, match=r"answered .*, without 'record'"):
        driver.ready(SERVER.address, timeout=1.0)
