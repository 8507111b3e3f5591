"""The reward of problems whose answer is one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.errors import DataError
from archon_rl.rewards.numbers import last_number


def final_number_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 when the completion's last number equals that of ``record["answer"]``, else 0.0.

    Raises:
        DataError: the record's answer has no number.
    """
    expected = last_number(str(record["answer"]))
    if expected is None:
        raise DataError(
            f"reward 'arithmetic': the answer {record['answer']!r} contains no number; name the field with "
            "data.answer_key, or choose another reward"
        )
    return float(last_number(completion) == expected)
