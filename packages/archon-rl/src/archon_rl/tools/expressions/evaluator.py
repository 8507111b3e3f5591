"""``evaluate``: the value of a Python expression, found by walking its syntax tree.

Names are those of ``FUNCTIONS`` and of the expression's own comprehensions and lambdas; attributes are the methods in
``METHODS`` and the functions of ``math``. So no expression reaches a module, a file, a class or an attribute with
underscores. Time and memory are not limited here: the sandbox process does that.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from archon_rl.tools.expressions.limits import ARITHMETIC, UNARY, ExpressionError, parse, shift_left
from archon_rl.tools.expressions.names import FUNCTIONS, MATH, METHODS

MAX_LENGTH = 10_000

Scope = Mapping[str, Any]

_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    **ARITHMETIC,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: shift_left,
    ast.RShift: operator.rshift,
}

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}

_CONVERSIONS: Mapping[int, Callable[[Any], Any]] = {-1: lambda value: value, 114: repr, 115: str, 97: ascii}
"""Of f-strings: the code of ``!r``, ``!s`` and ``!a``; -1 for none."""


def evaluate(expression: str) -> Any:
    """The value of an expression.

    Raises:
        ExpressionError: it is invalid, or uses something that is not allowed.
        Exception: whatever the operators and functions raise, such as a ZeroDivisionError.
    """
    return _value(parse(expression, MAX_LENGTH), {})


def _value(node: ast.expr, scope: Scope) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name):
            return _named(name, scope)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, scope), _value(right, scope))
        case ast.UnaryOp(op=op, operand=operand):
            return UNARY[type(op)](_value(operand, scope))
        case ast.BoolOp(op=op, values=values):
            return _first(values, scope, until=isinstance(op, ast.Or))
        case ast.Compare():
            return _comparison(node, scope)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, scope) else orelse, scope)
        case ast.Call():
            return _call(node, scope)
        case ast.Attribute(value=owner, attr=name):
            return _attribute(owner, name, scope)
        case ast.Subscript(value=owner, slice=index):
            return _value(owner, scope)[_value(index, scope)]
        case ast.Slice(lower=lower, upper=upper, step=step):
            return slice(*(None if part is None else _value(part, scope) for part in (lower, upper, step)))
        case ast.List(elts=items):
            return list(_items(items, scope))
        case ast.Tuple(elts=items):
            return tuple(_items(items, scope))
        case ast.Set(elts=items):
            return set(_items(items, scope))
        case ast.Dict(keys=keys, values=values):
            return _dictionary(keys, values, scope)
        case ast.ListComp(elt=item, generators=clauses):
            return [_value(item, inner) for inner in _scopes(clauses, scope)]
        case ast.SetComp(elt=item, generators=clauses):
            return {_value(item, inner) for inner in _scopes(clauses, scope)}
        case ast.GeneratorExp(elt=item, generators=clauses):
            return (_value(item, inner) for inner in _scopes(clauses, scope))
        case ast.DictComp(key=key, value=value, generators=clauses):
            return {_value(key, inner): _value(value, inner) for inner in _scopes(clauses, scope)}
        case ast.Lambda():
            return _function(node, scope)
        case ast.JoinedStr(values=parts):
            return "".join(_value(part, scope) for part in parts)
        case ast.FormattedValue(value=inner, conversion=conversion, format_spec=form):
            return format(_CONVERSIONS[conversion](_value(inner, scope)), "" if form is None else _value(form, scope))
    raise ExpressionError(f"found {_shown(node)}, which is not allowed in an expression")


def _named(name: str, scope: Scope) -> Any:
    if name in scope:
        return scope[name]
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    raise ExpressionError(f"found the name {name!r}; allowed are {', '.join(sorted(FUNCTIONS))} and math.NAME")


def _attribute(owner: ast.expr, name: str, scope: Scope) -> Any:
    if isinstance(owner, ast.Name) and owner.id == "math" and "math" not in scope:
        if name not in MATH:
            raise ExpressionError(f"found math.{name}; allowed are {', '.join(sorted(MATH))}")
        return MATH[name]
    value = _value(owner, scope)
    allowed = METHODS.get(type(value), frozenset())
    if name not in allowed:
        methods = ", ".join(sorted(allowed)) or "none"
        raise ExpressionError(f"found .{name} of a {type(value).__name__}; allowed are {methods}")
    return getattr(value, name)


def _call(node: ast.Call, scope: Scope) -> Any:
    function = _value(node.func, scope)
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ExpressionError("found ** in a call; name each argument")
        named[keyword.arg] = _value(keyword.value, scope)
    return function(*_items(node.args, scope), **named)


def _function(node: ast.Lambda, scope: Scope) -> Callable[..., Any]:
    arguments = node.args
    if arguments.posonlyargs or arguments.vararg or arguments.kwonlyargs or arguments.kwarg or arguments.defaults:
        raise ExpressionError("found a lambda with defaults, * or /; give it plain parameters")
    names = [argument.arg for argument in arguments.args]

    def call(*values: Any) -> Any:
        if len(values) != len(names):
            raise TypeError(f"the lambda takes {len(names)} arguments, not {len(values)}")
        return _value(node.body, {**scope, **dict(zip(names, values, strict=True))})

    return call


def _scopes(clauses: list[ast.comprehension], scope: Scope) -> Iterator[Scope]:
    """The scope of every item of a comprehension."""
    if not clauses:
        yield scope
        return
    clause, *others = clauses
    if clause.is_async:
        raise ExpressionError("found async in a comprehension")
    for value in _value(clause.iter, scope):
        inner = {**scope, **_bound(clause.target, value)}
        if all(_value(test, inner) for test in clause.ifs):
            yield from _scopes(others, inner)


def _bound(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that the target of a comprehension binds to a value."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple | ast.List) and not any(isinstance(one, ast.Starred) for one in target.elts):
        bound: dict[str, Any] = {}
        for one, part in zip(target.elts, list(value), strict=True):
            bound |= _bound(one, part)
        return bound
    raise ExpressionError(f"found {_shown(target)} as the target of a comprehension; write names")


def _items(nodes: list[ast.expr], scope: Scope) -> Iterator[Any]:
    for node in nodes:
        if isinstance(node, ast.Starred):
            yield from _value(node.value, scope)
        else:
            yield _value(node, scope)


def _dictionary(keys: list[ast.expr | None], values: list[ast.expr], scope: Scope) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            result |= _value(value, scope)
        else:
            result[_value(key, scope)] = _value(value, scope)
    return result


def _first(nodes: list[ast.expr], scope: Scope, *, until: bool) -> Any:
    """The first value whose truth is ``until``, or the last value."""
    value: Any = None
    for node in nodes:
        value = _value(node, scope)
        if bool(value) is until:
            break
    return value


def _comparison(node: ast.Compare, scope: Scope) -> bool:
    left = _value(node.left, scope)
    for op, other in zip(node.ops, node.comparators, strict=True):
        right = _value(other, scope)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 60 else text[:60] + "...")
