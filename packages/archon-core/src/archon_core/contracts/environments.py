"""Environments: what answers a model in a conversation, and rewards it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec

Message = Mapping[str, Any]
"""``role`` and ``content``, and what chat templates know beside them."""

Messages = Sequence[Message]

Outcome = tuple[Messages, float, bool]
"""Messages that follow the model's, the reward of the step, and whether the conversation is over."""


@dataclass(frozen=True)
class EnvironmentSpec(Spec):
    """A kind of environment, as ``environment.name`` names it. ``target`` names an ``EnvironmentFactory``."""

    kind: ClassVar[str] = "environment"
    hook: ClassVar[str] = "archon_environments"


ENVIRONMENT_PARAMETERS = ("options", "seed")
"""The positional parameters of an ``EnvironmentFactory``."""


class EnvironmentFactory(Protocol):
    """``target`` of an ``EnvironmentSpec``; or what ``environment.name`` names as ``module:function``."""

    def __call__(self, options: Mapping[str, Any], seed: int) -> Environment:
        """The environment of one sample.

        Args:
            options: ``environment.options``.
            seed: of the sample; an environment draws its random numbers from it, so that a resumed run repeats them.

        Raises:
            ConfigError: no sample can have an environment, such as after a package is missing; ends the run.
        """


class Environment(Protocol):
    """The environment of one sample. Its methods may be coroutines; others run in a thread of the collector, one call
    at a time.

    It may have an attribute ``tools``, a list of JSON schemas, for which the model writes calls; a method
    ``close()``, called at the end; and a method ``metrics()`` that returns numbers by name. An exception of any method
    leaves the record out of the step, with its reason in the log.
    """

    def reset(self, record: Mapping[str, Any]) -> Messages | Awaitable[Messages]:
        """The messages that begin the conversation about a record of the data set."""

    def step(self, message: Message) -> Outcome | Awaitable[Outcome]:
        """What follows a message of the model.

        Args:
            message: ``role`` (``assistant``) and ``content``; with ``environment.tool_call_parser`` also
                ``tool_calls``, as in OpenAI's interface, and ``problems``, a list of sentences about malformed calls;
                with ``environment.reasoning_parser`` also ``reasoning_content``.
        """
