"""The tool ``python``: the value of a Python expression.

It runs in a sandbox process, which limits time, memory, files and processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from archon_rl.tools.expressions.evaluator import evaluate

MAX_SHOWN_ITEMS = 10_000
"""Items of an iterator to show."""


def python(expression: str) -> str:
    """Evaluate a Python expression and return its value as Python writes it.

    Args:
        expression: One expression, without statements or imports. Functions such as len, sum, sorted, range and
            math.sqrt, methods of text and lists, and comprehensions are allowed.
    """
    value = evaluate(expression)
    if isinstance(value, Iterator):  # of a generator, map, zip
        value = list(islice(value, MAX_SHOWN_ITEMS))
    return value if isinstance(value, str) else repr(value)
