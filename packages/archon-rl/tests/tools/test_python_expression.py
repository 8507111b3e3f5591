"""The tool ``python``: expressions that it evaluates, and that none reaches anything else."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_rl.tools.expressions.evaluator import evaluate
from archon_rl.tools.expressions.limits import ExpressionError
from archon_rl.tools.expressions.names import FUNCTIONS, MATH, METHODS
from archon_rl.tools.python_expression import python

EXPRESSIONS = [
    "sum(x * x for x in range(10) if x % 2)",
    "[a + b for a, (b, c) in zip([1, 2], [(3, 4), (5, 6)]) for d in range(c)]",
    "{k: v for k, v in {'a': 1, **{'b': 2}}.items()}, {x // 2 for x in range(4)}",
    "sorted(['bb', 'a'], key=lambda text: -len(text))[::-1][0].upper()",
    "max(map(lambda a, b: a * b, [1, 2], [3, 4])), min(*[3, 1, 2])",
    "f'{3.14159:.{1 + 1}f} {\"x\"!r:>5} {12!s}'",
    "1 < 2 < 3 and not 3 in (1, 2) or 0",
    "0 or [] or 'last', 1 and 2, 5 if None else 6",
    "(lambda n: (lambda m: n + m))(1)(2)",
    "-(5 // 2) ** 2 % 7 << 3 | 1 & ~4 ^ 2",
    "'%05.1f' % 2.25 + 'ab' * 2",
    "[*range(3), *'ab'][1:4], (1, 2, 3)[-1], {'a': [1]}['a'][0]",
    "round(2.675, 2), divmod(7, 2), pow(3, -1, 7), abs(-2), 0x10, 0b11, 1e3",
    "isinstance(True, int), all([]), any(x is None for x in [None])",
    "' a,b '.strip().split(',') + ['c'.zfill(3)]",
]

ATTACKS = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "''.format.__self__",
    "'{0.__class__}'.format(1)",
    "'{0.__class__}'.format_map({})",
    "(lambda: 0).__globals__",
    "(x for x in [1]).gi_frame",
    "getattr(1, 'real')",
    "vars()",
    "type(1)",
    "open('/etc/passwd').read()",
    "eval('1')",
    "exec('1')",
    "compile('1', '', 'eval')",
    "globals()",
    "breakpoint()",
    "input()",
    "print(1)",
    "math.__loader__",
    "math.__dict__",
    "str.__class__",
    "str.mro()",
    "int.from_bytes(b'a', 'big')",
    "dict.fromkeys",
    "[math for math in [1]][0].__class__",
    "f'{().__class__}'",
    "f'{1!r.__class__}'",
    "(x := 1)",
    "(yield 1)",
    "[await x for x in [1]]",
    "[1 async for x in []]",
    "lambda x=1: x",
    "lambda *a: a",
    "print(**{'end': ''})",
    "dict(**{'a': 1})",
    "[0 for (1).real in [1]]",
    "[0 for a[0] in [1]]",
    "b'bytes'",
    "1j",
    "...",
    "import os",
    "a = 1",
    "1; 2",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_values_are_those_of_python(expression: str) -> None:
    assert repr(evaluate(expression)) == repr(eval(expression))


@pytest.mark.parametrize("expression", ATTACKS)
def test_nothing_but_values_is_within_reach(expression: str) -> None:
    with pytest.raises(ExpressionError):
        python(expression)


@pytest.mark.parametrize(
    "expression",
    ["9**9**9", "2**10**9", "1<<10**9", "'a'*10**9", "10**9*[0]", "math.factorial(10**5)", "math.prod([2**9999]*9)"],
)
def test_values_that_would_grow_without_bound_are_refused(expression: str) -> None:
    with pytest.raises(ExpressionError, match=r"more than|numbers up to"):
        python(expression)


def test_results_are_text_as_python_writes_it() -> None:
    assert python("'text'") == "text"
    assert python("['text', 1.0]") == "['text', 1.0]"
    assert python("map(str, range(2))") == "['0', '1']"


def test_no_name_or_method_reaches_attributes_classes_or_files() -> None:
    names = set(FUNCTIONS) | set(MATH)
    assert not names & {"getattr", "setattr", "vars", "type", "object", "open", "eval", "exec", "print", "input"}
    assert not any(name.startswith("_") for name in names)
    assert all(not name.startswith(("_", "format")) for names in METHODS.values() for name in names)


_PARTS = st.sampled_from(
    ["(", ")", "[", "]", "{", "}", ".", ",", ":", "*", "**", "lambda", "for", "in", "if", "f'{", "}'"]
)
_WORDS = st.sampled_from(["x", "1", "''", "math", "sqrt", "str", "__class__", "items", "range(3)", "dict", "=", "!r"])


@given(st.lists(_PARTS | _WORDS, max_size=14).map(" ".join))
def test_any_text_has_a_value_or_an_exception_of_values(expression: str) -> None:
    try:
        python(expression)
    except (ExpressionError, TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, OverflowError):
        return
    ast.parse(expression.strip(), mode="eval")
