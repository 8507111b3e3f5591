"""Tools that do what a sandbox must prevent, and tools that fail in other ways."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import Literal


def read_file(path: str) -> str:
    """Read a file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def connect(port: int) -> str:
    """Connect to a port of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return "connected"


def take_memory(mb: int) -> int:
    """Allocate memory."""
    return len(bytearray(mb * 2**20))


def secrets() -> str:
    """The values of the environment."""
    return " ".join(os.environ.values())


def hang(seconds: float) -> str:
    """Start a process, then wait."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    time.sleep(seconds)
    return "done"


def leave(code: int) -> str:
    """End the process."""
    os._exit(code)


def use_processor() -> None:
    """Compute for ever, in bytecode."""
    while True:
        pass


async def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Some more about it.

    Args:
        a: The first number,
            on two lines.
        b (int): The second one.

    Returns:
        The sum.
    """
    print("this is not the result")
    await asyncio.sleep(0)
    return a + b


def choose(
    text: str, how: Literal["first", "last"], *, words: list[str] | None = None, limits: dict | None = None
) -> list:
    """Choose."""
    return [text, how, words, limits]


def fail(text: str) -> str:
    """Raise."""
    raise LookupError(f"nothing\nabout {text}")


def odd(value: int) -> object:
    """Return what is no JSON."""
    return {value}


def give_up() -> None:
    """Exit."""
    sys.exit(3)


def untyped(value) -> str:  # type: ignore[no-untyped-def]
    """No type."""
    return value


given = add
