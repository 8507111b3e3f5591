"""The options that archon-tasks adds to the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import POSITIVE, option


@dataclass
class ReasoningGymOptions:
    """Generated problems of reasoning-gym (``data.reasoning_gym``). ``data.validation_size`` more are held out.

    Attributes:
        tasks: name of a task -> its options in reasoning-gym, such as ``{chain_sum: {min_terms: 2, max_terms: 3}}``;
            null for the defaults. All tasks have equally many problems.
        size: number of training problems.
        seed: seed of the problems; null takes the run's ``seed``.
        instruction: text to add to every question, such as the form in which to give the answer.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    size: int = option(1000, POSITIVE)
    seed: int | None = None
    instruction: str = ""


@dataclass
class VerifiersOptions:
    """Rows of an environment of verifiers (``data.verifiers``).

    Attributes:
        environment: name of an installed environment; the same as ``environment.options.environment``.
        arguments: of the environment's ``load_environment``.
    """

    environment: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
