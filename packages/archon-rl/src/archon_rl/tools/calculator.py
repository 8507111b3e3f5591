"""The tool ``calculator``: arithmetic with numbers.

Its work is bounded by the length of the expression and the size of integers, so it needs no process.
"""

from __future__ import annotations

import ast
import math
import re

from archon_rl.tools.expressions.limits import ARITHMETIC, UNARY, ExpressionError, parse

MAX_LENGTH = 1000
_SPELLINGS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"})
"""Typographic signs: multiplication sign, middle dot, division sign, minus sign, en dash."""

_LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=[0-9])")
"""Of whole numbers, which Python does not allow."""

Number = int | float


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % ** and parentheses, such as 3*(4+5)/2.
    """
    tree = parse(_LEADING_ZEROS.sub("", expression.translate(_SPELLINGS)), MAX_LENGTH)
    try:
        return shown_number(_value(tree))
    except ZeroDivisionError:
        raise ExpressionError("division by zero") from None
    except OverflowError:
        raise ExpressionError("a number would be too large") from None
    except RecursionError:
        raise ExpressionError("it is nested too deeply") from None


def shown_number(value: Number) -> str:
    """A number as text; a whole one without a fraction.

    >>> shown_number(6 / 2), shown_number(7 / 2)
    ('3', '3.5')
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ExpressionError("a number would be too large")
        if value.is_integer() and abs(value) < 2**53:
            value = int(value)
    try:
        return str(value)
    except ValueError:  # sys.get_int_max_str_digits()
        raise ExpressionError("the result has more than 4300 digits") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            result: Number = ARITHMETIC[type(op)](_value(node.left), _value(node.right))
            return result
        case ast.BinOp(op=ast.BitXor()):
            raise ExpressionError("found ^; write ** for a power")
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as op):
            signed: Number = UNARY[type(op)](_value(node.operand))
            return signed
    raise ExpressionError(f"found {_quoted(node)}; allowed are numbers, + - * / // % ** and parentheses")


def _quoted(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 60 else text[:60] + "...")
