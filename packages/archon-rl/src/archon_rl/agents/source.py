"""``AgentSource``: the agent that ``rollout.agent.agent_cls_path`` names, and how it is called."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.errors import ConfigError
from archon_rl.agents.errors import SessionError
from archon_rl.agents.functions import AGENT, AGENT_PARAMETERS
from archon_rl.cancellation import is_cancellation
from archon_rl.chosen_function import ChosenFunction
from archon_rl.rewards.checking import described

Rewards = float | dict[str, float] | None
Run = Callable[..., Awaitable[Any]]

ALLOWED = (
    "a class with 'async def run(self, data, **extra_kwargs)', or a function 'async def run(data, **extra_kwargs)'"
)


@dataclass(frozen=True)
class AgentSource(ChosenFunction):
    """An agent that is not imported yet."""

    option = AGENT
    parameters = AGENT_PARAMETERS

    def load(self) -> Any:
        """Import the class or function; see ``ChosenFunction.load``."""
        found = self._import_own()
        self._check_definer(found)
        return found

    def build(self, arguments: Mapping[str, Any]) -> Run:
        """Import the agent; returns its coroutine function ``run``.

        Args:
            arguments: keyword arguments of the class.

        Raises:
            ConfigError: the import fails, the class refuses its arguments, or there is no such function.
        """
        run = found = self.load()
        if inspect.isclass(found):
            try:
                run = getattr(found(**arguments), "run", None)
            except Exception as error:
                raise ConfigError(
                    f"{self}: {found.__name__}({', '.join(arguments)}) raised {described(error)}; correct the class, "
                    "or rollout.agent.agent_kwargs"
                ) from error
        elif arguments:
            raise ConfigError(
                f"{self}: found rollout.agent.agent_kwargs={dict(arguments)} for a function; only classes take them; "
                "leave them out"
            )
        if not inspect.iscoroutinefunction(run):
            raise ConfigError(f"{self}: found no coroutine function in {self.target}; allowed is {ALLOWED}")
        return run


class AgentCaller:
    """Runs an agent in one event loop.

    Its sessions share a client of HTTP: to make one takes tens of milliseconds.

    Args:
        run: the agent.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._http_client: Any = None

    async def call(self, record: Mapping[str, Any], **connection: Any) -> Rewards:
        """Run the agent for one session, and check what it returns.

        Args:
            record: of the data set.
            connection: ``base_url`` and ``api_key``. The agent also gets ``http_client``: a client of the OpenAI
                library without a time limit if the agent has imported it, else ``None``, with which the library makes
                one.

        Raises:
            SessionError: the agent raised an exception, or returned something else than rewards.
        """
        library = sys.modules.get("openai")
        if self._http_client is None and library is not None:
            self._http_client = library.DefaultAsyncHttpxClient(timeout=None)
        try:
            found = await self._run(
                dict(record), **_accepted(self._run, {**connection, "http_client": self._http_client})
            )
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
            raise SessionError(f"the agent raised {described(error)}") from error
        return _checked(found)

    async def close(self) -> None:
        """Close the client. Idempotent."""
        client, self._http_client = self._http_client, None
        if client is not None:
            await client.aclose()


def _accepted(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function has a place for."""
    parameters = inspect.signature(run).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


def _checked(found: Any) -> Rewards:
    if found is None:
        return None
    if isinstance(found, Mapping):
        return {str(name): _number(value) for name, value in found.items()}
    return _number(found)


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise SessionError(
            f"the agent returned {value!r}; allowed are a finite number, a dictionary of them by id of the answer, or "
            "None after a call of /rl/set_reward"
        )
    return float(value)
