"""A generated task with verifiable answers: all problems ``a op b`` with operands from 0 to a limit.

A seeded shuffle divides all problems into training and held-out problems. The mirror image of a held-out problem is not
trained on either: 35+7 would reveal 7+35.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archon_core.config.validation import check_options
from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError
from archon_core.seeding import derive_seed
from archon_rl.data_problems import missing_answers
from archon_rl.datasets.records import Split, SubsetDataset, split_records
from archon_rl.run_problems import refuse

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
COMMUTATIVE = "+*"

RETRY_DISTANCE = 20
"""Largest difference of the wrong results of demonstrations to the right one."""


@dataclass(frozen=True)
class Problems:
    """All problems; record i is computed from i.

    Attributes:
        max_operand: operands run from 0 to this number.
        operators: characters of ``OPERATORS``.
        prompt_key: field of the prompt, ``"a+b="``.
        answer_key: field of the result, as text.
        zero_pad: pad operands, and the results of each operator, to a fixed width with leading zeros.
        retry_demonstrations: share of the problems whose prompt shows a wrong result before.
        tool_demonstrations: share of the problems whose answer calls the calculator.
    """

    max_operand: int
    operators: str
    prompt_key: str = "question"
    answer_key: str = "answer"
    zero_pad: bool = False
    retry_demonstrations: float = 0.0
    tool_demonstrations: float = 0.0

    def __len__(self) -> int:
        return len(self.operators) * (self.max_operand + 1) ** 2

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        a, symbol, b = self._terms(index)
        answer, width = OPERATORS[symbol](a, b), len(str(self.max_operand)) if self.zero_pad else 0
        problem = f"{a:0{width}d}{symbol}{b:0{width}d}"
        question, written = f"{problem}=", self._written(answer, symbol)
        if derive_seed(0, "retry_demonstrations", index) < self.retry_demonstrations * 2**63:
            question = f"{question}{self._written(self._near(answer, symbol, index), symbol)}={question}"
        if derive_seed(0, "tool_demonstrations", index) < self.tool_demonstrations * 2**63:
            written = f"[calculator({problem})->{answer}] {written}"
        return {self.prompt_key: question, self.answer_key: written}

    def _written(self, result: int, symbol: str) -> str:
        if not self.zero_pad:
            return str(result)
        largest = max(self._results(symbol))
        return f"{'-' if result < 0 else ''}{abs(result):0{len(str(largest))}d}"

    def _near(self, answer: int, symbol: str, index: int) -> int:
        """A wrong result near the right one."""
        smallest, largest = min(self._results(symbol)), max(self._results(symbol))
        near = range(max(smallest, answer - RETRY_DISTANCE), min(largest, answer + RETRY_DISTANCE) + 1)
        wrong = [result for result in near if result != answer]
        return wrong[derive_seed(0, "wrong result", index) % len(wrong)]

    def _results(self, symbol: str) -> list[int]:
        """Results of the largest and smallest operands, the extremes among them."""
        most = self.max_operand
        return [OPERATORS[symbol](a, b) for a, b in ((0, 0), (0, most), (most, 0), (most, most))]

    def mirrored(self, index: int) -> int | None:
        """Index of the problem with swapped operands and the same answer; ``None`` if there is none."""
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
    """The training or the held-out problems.

    ``data.validation_size`` problems are held out; their mirror images belong to neither split.

    Raises:
        ConfigError: an operator is unknown, there are too few operands or too many problems, or none is left to train
            on.
    """
    options = config.arithmetic
    refuse(text for _, text in check_options(options, "data.arithmetic"))
    refuse(missing_answers(config))
    problems = Problems(
        options.max_operand,
        options.operators,
        config.prompt_key,
        config.answer_key,
        options.zero_pad,
        tool_demonstrations=options.tool_demonstrations,
    )
    training = replace(problems, retry_demonstrations=options.retry_demonstrations)
    held_out = split_records(problems, validation_size=config.validation_size, split="validation", seed=seed)
    if split == "validation":
        return held_out
    mirrors = {problems.mirrored(index) for index in held_out.indices}
    train = split_records(training, validation_size=config.validation_size, split="train", seed=seed)
    kept = [index for index in train.indices if index not in mirrors]
    if not kept:
        raise ConfigError(
            f"data.validation_size: found {config.validation_size} of {len(problems)} problems, which leave none to "
            "train on without their mirror images; lower it"
        )
    return SubsetDataset(training, kept)
