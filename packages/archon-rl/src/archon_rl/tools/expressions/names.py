"""The functions and methods that expressions may use.

Left out on purpose: whatever reaches attributes by their names (``getattr``, ``vars``, ``str.format``), classes
(``type``, ``object``), files and modules (``open``, ``__import__``), code (``eval``, ``compile``) or the terminal
(``input``, ``print``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from archon_rl.tools.expressions.limits import ExpressionError, multiply, power

MAX_FACTORIAL = 1000


def _pow(base: Any, exponent: Any, modulus: Any = None) -> Any:
    return power(base, exponent) if modulus is None else pow(base, exponent, modulus)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A combinatorial function of small numbers only."""

    def call(*numbers: Any) -> Any:
        if any(isinstance(number, int) and number > MAX_FACTORIAL for number in numbers):
            raise ExpressionError(f"{function.__name__} takes numbers up to {MAX_FACTORIAL}")
        return function(*numbers)

    return call


def _product(values: Any, *, start: Any = 1) -> Any:
    result = start
    for value in values:
        result = multiply(result, value)
    return result


MATH: Mapping[str, Any] = {
    **{name: getattr(math, name) for name in dir(math) if not name.startswith("_")},
    "factorial": _bounded(math.factorial),
    "comb": _bounded(math.comb),
    "perm": _bounded(math.perm),
    "prod": _product,
}

FUNCTIONS: Mapping[str, Any] = {
    **{
        function.__name__: function
        for function in (abs, all, any, bin, bool, chr, dict, divmod, enumerate, filter, float, frozenset, hex, int)
    },
    **{
        function.__name__: function
        for function in (isinstance, len, list, map, max, min, oct, ord, range, repr, reversed, round, set, sorted)
    },
    **{function.__name__: function for function in (str, sum, tuple, zip)},
    "pow": _pow,
    "sqrt": math.sqrt,
}

_SET_METHODS = frozenset(("difference", "intersection", "isdisjoint", "issubset")) | frozenset(
    ("issuperset", "symmetric_difference", "union")
)
_TEXT_METHODS = (
    frozenset(("capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha"))
    | frozenset(("isdecimal", "isdigit", "islower", "isspace", "istitle", "isupper", "join", "ljust", "lower"))
    | frozenset(("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust"))
    | frozenset(("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"))
    | frozenset(("title", "upper", "zfill"))
)

METHODS: Mapping[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    list: frozenset(("count", "index", "copy")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    set: _SET_METHODS,
    frozenset: _SET_METHODS,
    int: frozenset(("bit_length", "bit_count")),
    float: frozenset(("is_integer", "as_integer_ratio")),
}
