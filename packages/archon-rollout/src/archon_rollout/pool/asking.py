"""Asks the servers of a pool many things at a time, while a server is left to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from archon_rollout.pool.pool import Pool
from archon_rollout.pool.stopping import POLL_SECONDS

T = TypeVar("T")


async def answers_until_empty(pool: Pool, calls: Mapping[int, Coroutine[Any, Any, T]]) -> dict[int, T]:
    """The results of the calls that end before no server is left, by the calls' keys; the others are cancelled.

    Raises:
        Exception: the first one that a call raises.
    """
    tasks = {key: asyncio.create_task(call) for key, call in calls.items()}
    waiting = set(tasks.values())
    try:
        while waiting and not pool.is_empty():
            done, waiting = await asyncio.wait(waiting, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return {key: task.result() for key, task in tasks.items() if not task.cancelled()}
