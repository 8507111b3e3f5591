"""Extracts the numeric answer from a text, for all rewards about numbers. docs/rewards.md lists the rules."""

from __future__ import annotations

import re
from dataclasses import replace

from archon_rl.rewards.number_spelling import OPAQUE, plain_spelling
from archon_rl.rewards.number_tokens import CURRENCY, LETTER, Number, last_token_number, number_tokens

MARK = "####"
"""Precedes the answer in GSM8K (arXiv:2110.14168)."""

_BEFORE_ANSWER = re.compile(rf"[\s*_`~({{\[:=\u2248+{CURRENCY}-]*")
_EXPRESSION_GOES_ON = re.compile(
    rf"(?:\*\*\*?(?![0-9(]))?+[\s_`)}}\]]*+[-+*/\u00d7\u00f7^=<>][-+({{\[{CURRENCY}\s]*+(?:[0-9.\\]|[A-Za-z](?![A-Za-z]))"
)
_NOTHING_ELSE = re.compile(r"[\s.!*_`)}\]$%\u00b0]*")
_OPERATOR = re.compile(rf"(?<![{LETTER}])[-/^]|[-/^](?![{LETTER}0-9])|[+*\u00d7\u00f7<>\u00b1\u221a\\{OPAQUE}]")
_SIGN_OF_ANSWER = re.compile(
    rf"(?P<kept>(?:^|:)[\s*_`({{}}\[{CURRENCY}]*)[-+]\s*[{CURRENCY}]?\s*$|(?<=[A-Za-z]{{2}}\s)[-+][{CURRENCY}]?$"
)
_FACTORIAL = re.compile(r"(?<!\\)!")
_EMPHASISED = re.compile(r"(\*{1,3})(.*)\1")
_EMPHASIS_OF_NUMBER = re.compile(r"(\*{1,3})\n\1")


def last_number(text: str) -> Number | None:
    """The last number of ``text``; ``None`` when there is none.

    >>> last_number("12 clips and 1,048.50 dollars.")
    Number(value=Fraction(2097, 2), is_percentage=False)
    """
    return last_token_number(plain_spelling(text))


def answer_number(text: str, *, hash_mark: bool = False) -> Number | None:
    """The numeric answer of ``text``: the marked number, or the last number if there is no mark.

    A mark is ``\\boxed{...}``, or a line with ``####`` and a number; the last mark counts. A marked text with several
    numbers, an expression, or a number that is part of a value such as ``2x`` gives no number.

    Args:
        hash_mark: treat ``####`` as a mark even if the line has other text. If false, such a line is a Markdown
            heading.
    """
    marks = [(text.rfind(MARK), False), *((text.rfind(f"\\{name}{{"), True) for name in ("boxed", "fbox"))]
    for place, is_box in sorted((mark for mark in marks if mark[0] >= 0), reverse=True):
        if is_box:
            content = _group(text, text.index("{", place))
            number = None if _FACTORIAL.search(content) else _only_number(plain_spelling(content))
            # The sign may precede the box; a dash followed by a space is a list marker.
            negated = number is not None and plain_spelling(text[max(0, place - 1) : place]) == "-"
            return replace(number, value=-number.value) if number is not None and negated else number
        line = plain_spelling(text[place + len(MARK) :].lstrip("#").lstrip().partition("\n")[0])
        number = _leading_number(line, alone=not hash_mark)
        if number is not None or hash_mark:
            return number or _only_number(line)
    return last_number(text)


def _leading_number(text: str, *, alone: bool) -> Number | None:
    """The number at the start of ``text``, after signs, currency and emphasis, unless an expression follows.

    Args:
        alone: ``text`` must contain nothing else.
    """
    token = next(number_tokens(text), None)
    if token is None or not _BEFORE_ANSWER.fullmatch(text[: token.start]):
        return None
    if alone and not _NOTHING_ELSE.fullmatch(text, token.end):
        return None
    return None if _EXPRESSION_GOES_ON.match(text, token.end) else token.number


def _only_number(text: str) -> Number | None:
    """The only number of ``text``, besides words and units; of an equation, of its right side."""
    text = re.split("[=\u2248]", text)[-1].strip()
    if whole := _EMPHASISED.fullmatch(text):
        text = whole[2]
    tokens = list(number_tokens(text))
    if len(tokens) != 1 or tokens[0].number is None:
        return None
    [token] = tokens
    before = _SIGN_OF_ANSWER.sub(lambda sign: sign["kept"] or "", text[: token.start])
    rest = _EMPHASIS_OF_NUMBER.sub(" ", f"{before}\n{text[token.end :]}")
    return None if _OPERATOR.search(rest) else token.number


def _group(text: str, brace: int) -> str:
    """The text between the brace at ``brace`` and the matching one; empty if it is never closed."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[brace:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[brace + 1 : brace + match.start()]
    return ""
