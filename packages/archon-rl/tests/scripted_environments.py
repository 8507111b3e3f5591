"""Environments for tests. Each has a factory, a function named like the environment."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

from archon_core.errors import ConfigError

EVENTS: list = []
"""What happened, in order."""


class Guessing:
    """A number to guess; the reward is 1 for it, and 0.1 for any other number. Used in one thread."""

    def __init__(self, options, seed):
        self.secret, self.seed, self.messages = options.get("secret", "5"), seed, []
        self.thread = threading.get_ident()
        EVENTS.append(("new", seed))

    def reset(self, record):
        assert threading.get_ident() == self.thread
        return [{"role": "user", "content": record["question"]}]

    def step(self, message):
        assert threading.get_ident() == self.thread
        return self.answered(message)

    def answered(self, message):
        self.messages.append(message)
        guess = message["content"]
        hint = "less " if guess > self.secret else "more "
        return [{"role": "user", "content": f" {hint}"}], 1.0 if guess == self.secret else 0.1, guess == self.secret

    def metrics(self):
        return {"guesses": len(self.messages)}

    def close(self):
        EVENTS.append(("close", self.seed))


class AsyncGuessing(Guessing):
    """The same with coroutines, which run in the event loop."""

    async def reset(self, record):
        await asyncio.sleep(0)
        assert threading.get_ident() != self.thread
        return [{"role": "user", "content": record["question"]}]

    async def step(self, message):
        await asyncio.sleep(0)
        return self.answered(message)

    async def close(self):
        await asyncio.sleep(0)
        EVENTS.append(("close", self.seed))


class AsyncBroken(AsyncGuessing):
    """Takes its time in coroutines, or raises a ``TimeoutError`` itself."""

    def __init__(self, options, seed):
        super().__init__({}, seed)
        self.how = options["how"]

    async def step(self, message):
        if self.how == "raises":
            raise TimeoutError("the game server gave no answer")
        await asyncio.sleep(60)

    async def close(self):
        await super().close()
        raise asyncio.CancelledError


class WithTools(Guessing):
    tools = ({"type": "function", "function": {"name": "guess", "parameters": {"type": "object", "properties": {}}}},)

    def step(self, message):
        EVENTS.append(message)
        return [], 1, True


class Broken(Guessing):
    def __init__(self, options, seed):
        super().__init__({}, seed)
        self.how = options["how"]

    def step(self, message):
        if self.how == "hangs":
            time.sleep(0.4)
        if self.how == "raises":
            raise LookupError("nothing there")
        if self.how == "times out":
            raise TimeoutError("the game server gave no answer")
        if self.how == "exits":
            sys.exit(3)
        return {
            "no tuple": 1,
            "nan": ([], float("nan"), True),
            "text": ("more", 0.0, False),
            "role": ([{"content": "x"}], 0.0, False),
            "hangs": ([], 0.0, True),
        }[self.how]


def guessing(options, seed):
    return Guessing(options, seed)


def async_guessing(options, seed):
    return AsyncGuessing(options, seed)


def async_broken(options, seed):
    return AsyncBroken(options, seed)


def with_tools(options, seed):
    return WithTools(options, seed)


def broken(options, seed):
    return Broken(options, seed)


def unbuildable(options, seed):
    raise ConfigError("environment.name: install it")


NAMES = ("guessing", "async_guessing", "async_broken", "with_tools", "broken", "unbuildable")
