"""The reward ``math_verify``: compares completion and answer as mathematics, with Hugging Face's math-verify.

math-verify has time limits of its own, which work in the main thread of a process alone. They are switched off: reward
processes have a time limit (``rewards.timeout_seconds``), which also ends what a signal cannot.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from archon_core.errors import ConfigError, DataError

try:
    import math_verify
except ModuleNotFoundError as error:
    if error.name != "math_verify":
        raise  # the package is there, and its own import fails
    raise ConfigError(
        "reward: found 'math_verify', whose package math-verify is not installed; pip install 'archon-tasks[math]'"
    ) from error

# Its advice about time limits would be printed by every process.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_MARKED = re.compile(r"\\boxed|\\fbox|\$|\\\(|\\\[")
"""LaTeX that math-verify finds in a text."""


def math_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 if the answer in the completion equals ``record["answer"]`` as mathematics, else 0.0.

    The completion's answer is its last ``\\boxed{}``, else its last formula or number. The record's answer may be a
    bare expression, such as ``\\frac{1}{2}``, a text with LaTeX in ``$`` or ``\\boxed{}``, or a solution of GSM8K, with
    the answer after ``####``.

    Raises:
        DataError: math-verify finds no mathematics in the record's answer.
    """
    answer = str(record["answer"])
    expected = _parse(_marked(answer))
    if not expected:
        raise DataError(
            f"reward 'math_verify': found no mathematics in the answer {answer!r}; set data.answer_key to the field "
            "with the answer, or choose another reward"
        )
    return float(math_verify.verify(expected, _parse(completion), timeout_seconds=None))


def _marked(answer: str) -> str:
    """The answer in a form in which math-verify reads it as one formula."""
    bare = answer.rpartition("####")[2].strip()
    return bare if _MARKED.search(bare) else f"\\boxed{{{bare}}}"


def _parse(text: str) -> list[Any]:
    return math_verify.parse(text, parsing_timeout=None)
