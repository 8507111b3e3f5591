"""Values that an option may take beyond its type: a rule stands on the option's own field.

::

    @dataclass
    class Sampling:
        top_k: int = option(0, NOT_NEGATIVE, fix="0 keeps all tokens")
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from archon_core.errors import did_you_mean

Rule = Callable[[Any], str | None]
"""Takes a value, which is not null, and returns what is allowed when that is not it."""


def option(default: Any, allowed: Rule, *, fix: str = "") -> Any:
    """A dataclass field with a rule for its values. Null is allowed where the field's type allows it.

    Args:
        default: an immutable value.
        allowed: the rule.
        fix: what to say beside the allowed values.
    """
    return dataclasses.field(default=default, metadata={"rule": allowed, "fix": fix})


def one_of(*choices: str) -> Rule:
    """The value is one of these texts."""

    def rule(value: str) -> str | None:
        return None if value in choices else ", ".join(choices) + did_you_mean(value, choices)

    return rule


def number(
    *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """The value is finite and in this range."""
    parts = [
        f"from {least:g}" if least > -math.inf else "",
        f"above {above:g}" if above > -math.inf else "",
        f"up to {most:g}" if most < math.inf else "",
        f"below {below:g}" if below < math.inf else "",
    ]
    allowed = "numbers " + " ".join(filter(None, parts)) if any(parts) else "finite numbers"

    def rule(value: float) -> str | None:
        inside = math.isfinite(value) and least <= value <= most and above < value < below
        return None if inside else allowed

    return rule


POSITIVE = number(least=1)
NOT_NEGATIVE = number(least=0)
SHARE = number(least=0, most=1)
