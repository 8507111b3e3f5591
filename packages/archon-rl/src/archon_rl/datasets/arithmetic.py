"""A procedural task with a verifiable answer: all problems ``a op b`` with operands from 0 to a limit.

Training and held-out problems are two parts of one enumeration, shuffled by the seed, so that no held-out problem
is ever trained on; nor is its mirror image, since 35+7 gives 7+35 away.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError
from archon_rl.datasets.records import Split, SubsetDataset, cut

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
COMMUTATIVE = "+*"
MOST_PROBLEMS = 20_000_000
"""The order of all problems is kept in memory."""


@dataclass(frozen=True)
class Problems:
    """The enumeration: record i is computed from i.

    Attributes:
        max_operand: operands run from 0 to this number.
        operators: characters of ``OPERATORS``.
        prompt_key: field for ``"a+b="``.
        answer_key: field for the result, as text.
        zero_pad: leading zeros give all operands one width, and all results of an operator one width.
    """

    max_operand: int
    operators: str
    prompt_key: str = "question"
    answer_key: str = "answer"
    zero_pad: bool = False

    def __len__(self) -> int:
        return len(self.operators) * (self.max_operand + 1) ** 2

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        a, symbol, b = self._terms(index)
        answer = OPERATORS[symbol](a, b)
        if not self.zero_pad:
            return {self.prompt_key: f"{a}{symbol}{b}=", self.answer_key: str(answer)}
        width = len(str(self.max_operand))
        largest = max(OPERATORS[symbol](self.max_operand, x) for x in (0, self.max_operand))
        answer_width = len(str(largest))
        written = f"{'-' if answer < 0 else ''}{abs(answer):0{answer_width}d}"
        return {self.prompt_key: f"{a:0{width}d}{symbol}{b:0{width}d}=", self.answer_key: written}

    def mirrored(self, index: int) -> int | None:
        """The problem with the operands exchanged that has the same answer; ``None`` when there is no other."""
        a, symbol, b = self._terms(index)
        if symbol not in COMMUTATIVE or a == b:
            return None
        return (self.operators.index(symbol) * (self.max_operand + 1) + b) * (self.max_operand + 1) + a

    def _terms(self, index: int) -> tuple[int, str, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, b = divmod(index, self.max_operand + 1)
        which, a = divmod(rest, self.max_operand + 1)
        return a, self.operators[which], b


def arithmetic_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """The training or the held-out part of all problems.

    ``data.validation_size`` of them are held out; mirror images of those belong to neither part.

    Raises:
        ConfigError: an unknown operator, no operands, more problems than fit, or none left to train on.
    """
    options = config.arithmetic
    unknown = sorted(set(options.operators) - set(OPERATORS))
    if unknown or not options.operators or len(set(options.operators)) != len(options.operators):
        raise ConfigError(
            f"data.arithmetic.operators: found {options.operators!r}; allowed is any of {''.join(OPERATORS)!r}, "
            "each once"
        )
    if options.max_operand < 1:
        raise ConfigError(f"data.arithmetic.max_operand: found {options.max_operand}; it must be 1 or more")
    if config.answer_key is None:
        raise ConfigError(
            "data.answer_key: found null; the data set 'arithmetic' writes its results to a field, so allowed is a "
            "name; set data.answer_key=answer"
        )
    problems = Problems(options.max_operand, options.operators, config.prompt_key, config.answer_key, options.zero_pad)
    if len(problems) > MOST_PROBLEMS:
        raise ConfigError(
            f"data.arithmetic.max_operand={options.max_operand} makes {len(problems):,} problems; at most "
            f"{MOST_PROBLEMS:,} can be enumerated; choose a smaller operand"
        )
    held_out = cut(problems, validation_size=config.validation_size, split="validation", seed=seed)
    if split == "validation":
        return held_out
    given_away = {problems.mirrored(index) for index in held_out.indices}
    train = cut(problems, validation_size=config.validation_size, split="train", seed=seed)
    kept = [index for index in train.indices if index not in given_away]
    if not kept:
        raise ConfigError(
            f"data.validation_size: found {config.validation_size} of {len(problems)} problems; with their mirror "
            "images they leave none to train on; hold out fewer"
        )
    return SubsetDataset(problems, kept)
