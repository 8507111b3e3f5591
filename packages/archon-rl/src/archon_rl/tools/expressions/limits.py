"""Operators of arithmetic whose results cannot grow without bound."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MAX_BITS = 20_000
"""Size of integers, about 6,000 digits."""

MAX_ITEMS = 1_000_000
"""Characters of a text, or items of a list, that an operator may make."""


class ExpressionError(Exception):
    """An expression that is not allowed or has no value. The message is for the model."""


def add(a: Any, b: Any) -> Any:
    """``a + b``."""
    _check_items(_length(a) + _length(b))
    return a + b


def multiply(a: Any, b: Any) -> Any:
    """``a * b``, also of text and lists."""
    for items, times in ((a, b), (b, a)):
        if _length(items) and isinstance(times, int):
            _check_items(_length(items) * max(0, times))
    if isinstance(a, int) and isinstance(b, int):
        check_bits(a.bit_length() + b.bit_length())
    return a * b


def power(a: Any, b: Any) -> Any:
    """``a ** b``; never a complex number."""
    if isinstance(a, int) and isinstance(b, int) and b > 0:
        check_bits(a.bit_length() * b)
    result = a**b
    if isinstance(result, complex):
        raise ExpressionError("the power of a negative number with a fraction is no real number")
    return result


def shift_left(a: Any, b: Any) -> Any:
    """``a << b``."""
    if isinstance(a, int) and isinstance(b, int):
        check_bits(a.bit_length() + max(0, b))
    return a << b


def check_bits(bits: int) -> None:
    """Raise ``ExpressionError`` if an integer would have more than ``MAX_BITS``."""
    if bits > MAX_BITS:
        raise ExpressionError(f"a number would have more than {int(MAX_BITS * math.log10(2))} digits")


def _check_items(items: int) -> None:
    if items > MAX_ITEMS:
        raise ExpressionError(f"a text or list would have more than {MAX_ITEMS} items")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: add,
    ast.Sub: operator.sub,
    ast.Mult: multiply,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}

UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}


def parse(expression: str, longest: int) -> ast.expr:
    """The syntax tree of an expression.

    Raises:
        ExpressionError: it is too long or no expression of Python.
    """
    if len(expression) > longest:
        raise ExpressionError(f"found {len(expression)} characters; at most {longest} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about 1if, which is a number and a keyword
            return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"invalid syntax: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError("invalid syntax: it is nested too deeply or has an invalid character") from None
