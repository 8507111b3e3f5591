"""The reward of GSM8K (arXiv:2110.14168): its solutions end in ``#### <number>``."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from archon_core.errors import DataError
from archon_rl.rewards.numbers import last_number

MARKER = "####"


def gsm8k_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 when the completion's answer equals that of ``record["answer"]``, else 0.0.

    The answer is the last number after the last ``####``, or of the whole text when there is no such mark.

    Raises:
        DataError: the record's answer has no number.
    """
    expected = _answer(str(record["answer"]))
    if expected is None:
        raise DataError(
            f"reward 'gsm8k': the answer {record['answer']!r} contains no number; name the field with data.answer_key, "
            "or choose another reward"
        )
    return float(_answer(completion) == expected)


def _answer(text: str) -> Decimal | None:
    return last_number(text.rpartition(MARKER)[2])
