"""``RunningEnvironment``: the environment of one sample, called from an event loop with a time limit per call."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from archon_core.contracts.environments import Environment, EnvironmentFactory, Message
from archon_core.errors import ArchonError
from archon_rl.cancellation import is_cancellation
from archon_rl.worker_threads import WorkerThreads

CLOSE = "close"

_Call = tuple[str, tuple[Any, ...]]


class EnvironmentFailedError(ArchonError):
    """An environment that gave no answer in time, or an invalid one. Costs its record."""


class _Instance:
    """An environment in its thread, built at the first call."""

    def __init__(self, factory: EnvironmentFactory, options: Mapping[str, Any], seed: int) -> None:
        self._factory, self._options, self._seed = factory, options, seed
        self._environment: Environment | None = None
        self._closed = False

    def call(self, call: _Call) -> Any:
        """The value of an attribute, or the result of a method, which may be a coroutine; ``None`` without it."""
        name, arguments = call
        try:
            if name == CLOSE:
                self._closed = True
                if self._environment is None:
                    return None
            if self._environment is None:
                self._environment = self._factory(self._options, self._seed)
            value = getattr(self._environment, name, None)
            return value(*arguments) if callable(value) else value
        except SystemExit as error:  # would end the trainer
            raise EnvironmentFailedError(f"{name} of the environment called sys.exit({error.code!r})") from error

    def close(self) -> None:
        """Close an environment whose call of ``close`` was cancelled or could not wait for a thread that hung."""
        method = getattr(self._environment, CLOSE, None)
        if not self._closed and callable(method) and not inspect.iscoroutinefunction(method):
            with suppress(Exception, SystemExit):
                method()


class RunningEnvironment:
    """An environment and its thread; coroutines of the environment run in the event loop.

    Args:
        name: of the environment, for messages.
        factory: builds it, in the thread.
        options: its options.
        seed: of the sample.
        timeout: time limit of a call in seconds.
    """

    def __init__(
        self, name: str, factory: EnvironmentFactory, options: Mapping[str, Any], seed: int, timeout: float
    ) -> None:
        self._name, self._timeout, self._hangs = name, timeout, False
        self._threads: WorkerThreads[_Instance, _Call, Any] = WorkerThreads(
            lambda: _Instance(factory, options, seed), _Instance.call, 1, "archon-environment"
        )

    async def tools(self) -> list[Mapping[str, Any]]:
        """JSON schemas of the tools that the environment has."""
        found = await self._call("tools")
        if not isinstance(found, list | tuple | None):
            raise self._invalid("tools", found, "a list of JSON schemas")
        return list(found or ())

    async def reset(self, record: Mapping[str, Any]) -> list[Message]:
        """The messages that begin the conversation.

        Raises:
            EnvironmentFailedError: no answer in time, or an invalid one.
            Exception: whatever the environment raises.
        """
        found = await self._call("reset", record)
        messages = self._messages("reset", found)
        if not messages:
            raise self._invalid("reset", found, "a list with at least one message")
        return messages

    async def step(self, message: Message) -> tuple[list[Message], float, bool]:
        """What follows a message of the model. Raises as ``reset``."""
        found = await self._call("step", message)
        allowed = "(messages, reward, done), with a finite number as the reward"
        if not isinstance(found, tuple) or len(found) != 3:
            raise self._invalid("step", found, allowed)
        messages, reward, done = found
        if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            raise self._invalid("step", found, allowed)
        return self._messages("step", messages), float(reward), bool(done)

    async def metrics(self) -> dict[str, float]:
        """Numbers about the conversation."""
        found = await self._call("metrics")
        if not isinstance(found, Mapping | None) or not all(
            isinstance(value, numbers.Real) for value in (found or {}).values()
        ):
            raise self._invalid("metrics", found, "numbers by name")
        return {str(name): float(value) for name, value in (found or {}).items()}

    async def close(self) -> None:
        """Close the environment. What it raises concerns nobody: the conversation is over."""
        try:
            if not self._hangs:
                await self._call(CLOSE)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
        finally:
            self._threads.close(wait=False)

    async def _call(self, name: str, *arguments: Any) -> Any:
        answer = self._threads.submit((name, arguments))
        try:
            async with asyncio.timeout(self._timeout) as limit:
                value = await asyncio.wrap_future(answer)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError as error:
            if not limit.expired():  # the environment raised it
                raise
            # A coroutine that was too slow has ended, and leaves the thread free to close the environment.
            self._hangs = self._hangs or answer.running()
            raise EnvironmentFailedError(
                f"environment {self._name!r}: {name} gave no answer within {self._timeout:g} s "
                "(environment.timeout_seconds)"
            ) from error

    def _messages(self, method: str, found: Any) -> list[Message]:
        is_list = isinstance(found, Sequence) and not isinstance(found, str)
        if not is_list or not all(_is_message(one) for one in found):
            raise self._invalid(method, found, "messages with role and content, both of them text")
        return [dict(one) for one in found]

    def _invalid(self, method: str, found: Any, allowed: str) -> EnvironmentFailedError:
        shown = repr(found)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        return EnvironmentFailedError(
            f"environment {self._name!r}: found {shown} from {method}; allowed is {allowed}; correct the environment"
        )


def _is_message(found: Any) -> bool:
    return isinstance(found, Mapping) and isinstance(found.get("role"), str) and isinstance(found.get("content"), str)
