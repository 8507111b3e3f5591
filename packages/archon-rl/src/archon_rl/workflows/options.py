"""Options of this package's workflows. Imports no torch: configurations load this module."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.config.rules import POSITIVE, SHARE, number, option

PROMPT = "{prompt}"
"""Stands for the record's prompt in ``multi_turn.feedback``."""

NO_REWARD = (
    "workflow: found multi_turn without a reward, which tells right answers from wrong ones; set reward, or "
    "workflow=rlvr"
)
"""The problem of the workflow ``multi_turn`` without a reward."""

FEEDBACK = "Your answer is wrong. Read the question again, look for your mistake, and give another answer."


def _feedback(value: str) -> str | None:
    return None if value else "texts with at least one character"


@dataclass
class MultiTurnOptions:
    """The workflow ``multi_turn``.

    Attributes:
        max_turns: largest number of answers per sample. A conversation also ends at the first right answer, and where
            the next one would not fit into the model's context.
        turn_discount: the reward of the last answer is multiplied by this for every turn after the first.
        feedback: what follows a wrong answer: a user's message if the tokenizer has a chat template, else plain text;
            ``{prompt}`` stands for the record's prompt. Not in AReaL, whose text is fixed.
        solved_above: an answer is right if its reward is above this. Not in AReaL.
    """

    max_turns: int = option(4, POSITIVE)
    turn_discount: float = option(1.0, SHARE)
    feedback: str = option(FEEDBACK, _feedback)
    solved_above: float = option(0.0, number())
