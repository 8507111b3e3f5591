"""The reward for problems with a numeric answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.errors import DataError
from archon_rl.rewards.number_reading import answer_number


def final_number_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 if the number in the completion equals the number in ``record["answer"]``, else 0.0.

    The number is the marked one (``\\boxed{}``, or ``####`` before a number), else the last one.

    Raises:
        DataError: the record's answer contains no number.
    """
    return number_reward("arithmetic", completion, record, hash_mark=False)


def number_reward(name: str, completion: str, record: Mapping[str, Any], *, hash_mark: bool) -> float:
    """1.0 if ``answer_number`` reads equal numbers from completion and ``record["answer"]``, else 0.0.

    Args:
        name: of the reward, for the message.
        hash_mark: see ``answer_number``.

    Raises:
        DataError: the record's answer contains no number.
    """
    expected = answer_number(str(record["answer"]), hash_mark=hash_mark)
    if expected is None:
        raise DataError(
            f"reward {name!r}: found no number in the answer {record['answer']!r}; set data.answer_key to the field "
            "with the answer, or choose another reward"
        )
    found = answer_number(completion, hash_mark=hash_mark)
    return float(found is not None and found.equals(expected))
