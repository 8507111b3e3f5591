"""Calls a reward function and accepts only a finite number.

One NaN would make the advantages of its whole group NaN, and ``actor.reward_clip`` would turn an infinite reward into a
plausible one. So such a completion has no reward, as after an exception.
"""

from __future__ import annotations

import math
import numbers
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from archon_core.contracts.data import Reward
from archon_core.errors import ArchonError, ConfigError, RewardError

LARGEST = 2.0**128 - 2.0**104
"""The largest finite float32: rewards are float32 tensors."""

SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class NamedReward:
    """A reward function and its name in the configuration."""

    name: str
    function: Reward


def checked_reward(
    reward: NamedReward, prompt: str, completion: str, record: Mapping[str, Any], *, place: str
) -> float:
    """The reward of one completion as a finite float.

    Accepts Python, numpy and torch numbers, and booleans: ``True`` is 1.0.

    Args:
        place: location of the record for messages, such as ``problems.jsonl:3``.

    Raises:
        RewardError: the function raised anything but a ConfigError, or did not return one finite number.
        ConfigError: the function raised one.
    """
    where = f"{place}: reward {reward.name!r}"
    try:
        value = reward.function(prompt, completion, record)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    except ArchonError as error:  # its message says what is wrong and how to correct it
        raise RewardError(f"{place}: {error}") from error
    except (Exception, SystemExit) as error:  # a reward may run a model's code, which may call exit()
        raise RewardError(
            f"{where}: it raised {described(error)}; correct the function, or let it return a number for "
            f"completions that it cannot score; the completion was {shown_completion(completion)}"
        ) from error
    number = _as_float(value)
    if number is None or not abs(number) <= LARGEST:  # also true for NaN
        raise RewardError(
            f"{where}: it returned {_short_repr(value)}; a reward must be one finite number of at most 3.4e38 in size; "
            f"correct the function; the completion was {shown_completion(completion)}"
        )
    return number


def _as_float(value: Any) -> float | None:
    """``value`` as a float, infinite if it overflows; ``None`` if it is not a single real number."""
    if isinstance(value, (str, bytes)):
        return None
    # Scalars and one-element tensors of numpy, torch and jax convert themselves to Python numbers.
    if callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except Exception:  # item() is foreign code
            return None
    if not isinstance(value, (numbers.Real, Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN of Decimal
        return math.nan


def described(error: BaseException) -> str:
    """Type and message of an exception, and the line of the reward function that it passed through."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # a user-defined exception whose __str__ fails
        message = ""
    frames = traceback.extract_tb(error.__traceback__)[1:2]  # the first frame is our call
    place = "".join(f" ({Path(frame.filename).name}:{frame.lineno} in {frame.name})" for frame in frames)
    return type(error).__name__ + (f": {message}" if message else "") + place


def shown_completion(completion: str) -> str:
    """A completion for messages, shortened."""
    return _short_repr(completion)


def _short_repr(value: Any) -> str:
    """Whatever a reward function returned, shortened, even if its ``repr`` raises."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
