"""A procedural task with a verifiable answer: all problems ``a op b`` with operands from 0 to a limit.

Training and held-out problems are two parts of one enumeration, shuffled by the seed, so that no held-out problem
is ever trained on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.errors import ConfigError
from archon_core.protocols import Dataset
from archon_rl.datasets.records import Split, cut

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
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
    """

    max_operand: int
    operators: str
    prompt_key: str = "question"
    answer_key: str = "answer"

    def __len__(self) -> int:
        return len(self.operators) * (self.max_operand + 1) ** 2

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, b = divmod(index, self.max_operand + 1)
        which, a = divmod(rest, self.max_operand + 1)
        symbol = self.operators[which]
        return {self.prompt_key: f"{a}{symbol}{b}=", self.answer_key: str(OPERATORS[symbol](a, b))}


def arithmetic_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """The training or the held-out part of all problems; ``data.validation_size`` of them are held out.

    Raises:
        ConfigError: an unknown operator, no operands, or more problems than fit.
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
    problems = Problems(options.max_operand, options.operators, config.prompt_key, config.answer_key)
    if len(problems) > MOST_PROBLEMS:
        raise ConfigError(
            f"data.arithmetic.max_operand={options.max_operand} makes {len(problems):,} problems; at most "
            f"{MOST_PROBLEMS:,} can be enumerated; choose a smaller operand"
        )
    return cut(problems, validation_size=config.validation_size, split=split, seed=seed)
