"""The calls of the reward function for the completions of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.errors import DataError
from archon_rl.fields import read_field
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.text_encoding import TextEncoder


def reward_calls(
    encoder: TextEncoder, record: Mapping[str, Any], place: str, completions: Sequence[Sequence[int]]
) -> list[RewardCall] | Outcome:
    """The calls of the reward function for the completions of one record, or why a record without an answer has none.

    Args:
        place: location of the record, for messages.
        completions: token ids of each completion.
    """
    known = record
    if encoder.answer_key is not None:
        try:
            known = {**record, "answer": read_field(record, encoder.answer_key)}
        except DataError as error:
            return Outcome(error=f"{place}: {error}", cause="records without an answer")
    prompt = encoder.prompt(record)
    return [RewardCall(prompt, encoder.decode(ids), known, place) for ids in completions]
