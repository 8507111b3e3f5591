"""The reward of GSM8K (arXiv:2110.14168): its solutions end in ``#### <number>``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_rl.rewards.arithmetic import number_reward


def gsm8k_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 if the completion's answer equals the answer in ``record["answer"]``, else 0.0.

    The answer is the number after the last ``####`` or in the last ``\\boxed{}``, whichever comes later; without a mark
    it is the last number.

    Raises:
        DataError: the record's answer contains no number.
    """
    return number_reward("gsm8k", completion, record, hash_mark=True)
