"""The options of data sets and of tokenization. Imports no torch: every configuration loads this module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archon_core.config.rules import POSITIVE, SHARE, option

OPERATORS = "+-*"
MOST_PROBLEMS = 20_000_000
"""Largest number of generated problems: their shuffled order is held in memory."""


def _operators(value: str) -> str | None:
    valid = value and set(value) <= set(OPERATORS) and len(set(value)) == len(value)
    return None if valid else f"{OPERATORS!r}, each at most once"


@dataclass
class ArithmeticOptions:
    """The generated arithmetic task (``data.arithmetic``): all problems ``a op b``.

    Attributes:
        max_operand: operands range from 0 to this number.
        operators: any of ``+``, ``-`` and ``*``, as one string.
        zero_pad: pad operands and results with leading zeros to a fixed width, as in ``07+35=042``.
        retry_demonstrations: share of the training problems that follow a wrong result, as in ``7+35=41=7+35=``. For a
            warm start of the workflow ``multi_turn`` with the feedback ``={prompt}``.
        tool_demonstrations: share of the problems whose answer calls the calculator first, in the format of the parser
            ``toolformer``, as in ``[calculator(37*46)->1702] 1702``. For a warm start of the workflow ``tools``.
    """

    max_operand: int = option(99, POSITIVE)
    operators: str = option("+", _operators)
    zero_pad: bool = False
    retry_demonstrations: float = option(0.0, SHARE)
    tool_demonstrations: float = option(0.0, SHARE)

    def problems(self) -> Iterator[tuple[str, str]]:
        n_problems = len(self.operators) * (self.max_operand + 1) ** 2
        if n_problems > MOST_PROBLEMS:
            yield (
                "max_operand",
                f"found {self.max_operand}, which gives {n_problems:,} problems; allowed are at most "
                f"{MOST_PROBLEMS:,}; lower it",
            )


@dataclass
class HuggingFaceOptions:
    """A data set of Hugging Face ``datasets`` (``data.hf``); ``data.path`` is its id or folder.

    Attributes:
        name: configuration of the data set, such as ``main``.
        split: split to train on.
        validation_split: held-out split, of ``data.validation_path`` if set; null holds out
            ``data.validation_size`` records of ``split``.
    """

    name: str | None = None
    split: str = "train"
    validation_split: str | None = None


@dataclass
class TokenizerOptions:
    """Tokenization (``tokenizer``).

    Attributes:
        use_chat_template: format each prompt as a user message if the tokenizer has a chat template.
    """

    use_chat_template: bool = True
