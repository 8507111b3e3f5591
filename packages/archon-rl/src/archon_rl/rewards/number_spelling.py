"""Rewrites Unicode and TeX spellings of numbers to plain ASCII before ``number_reading`` looks for numbers.

Every function is a single pass or a regular expression without nested repetition, so long completions take linear time.
"""

from __future__ import annotations

import re
import unicodedata

OPAQUE = "\ue000"
"""Replaces a TeX group that is only part of a value, such as the argument of a root or an exponent."""
THIN_SPACE = "\u202f"
"""Replaces spaces that only separate digit groups: no-break, thin and figure spaces, TeX ``\\,``."""

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),  # hyphens, en dash, minus; not the em dash
        **dict.fromkeys("\u00a0\u2007\u2009\u202f", THIN_SPACE),
        **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff", None),  # invisible
        **dict.fromkeys("\u22c5\u00b7\u2219\u2715", "\u00d7"),
        **dict.fromkeys("\u2044\u2215", "/"),
        **dict.fromkeys("\u2264\u2a7d", "<"),
        **dict.fromkeys("\u2260\u2265\u2a7e\u2192\u21d2", ">"),
        **dict.fromkeys("\u2019\u2032", "'"),
        **dict(zip("％．，／＋＝＄：（）", "%.,/+=$:()", strict=True)),  # noqa: RUF001
        "\u066a": "%",
        "\u066b": ".",
        "\u066c": ",",
    }
)
_DIGITS_OF_OTHER_SCRIPTS = re.compile(r"(?![0-9])\d")
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_SUBSCRIPTS = re.compile("[\u2080-\u2089]+")
_VULGAR_FRACTION = re.compile("(?:([0-9])\\s?)?([\u00bc-\u00be\u2150-\u215e])")
_EMPHASIS = re.compile(r"(?<!\w)(__?)(?=[-+.$\d])([^_\n]*)\1(?!\w)")

_TEX_COMMANDS = {
    "text textbf textit textrm texttt emph underline mathrm mathbf mathit mathsf boldsymbol operatorname mbox hbox bf "
    "rm it boxed fbox left right big Big bigg Bigg large Large displaystyle quad qquad therefore because": " ",
    "le leq lt ll": "<",
    "ge geq gt gg ne neq to rightarrow Rightarrow implies iff": ">",
    "times cdot ast": "\u00d7",
    "dots ldots cdots": "...",
    "pm mp": "\u00b1",
    "frac dfrac tfrac cfrac": r"\frac",
    "circ degree": "\u00b0",
    "div": "\u00f7",
    "approx simeq": "\u2248",
    "sqrt": "\u221a",
    "pounds": "\u00a3",
    "euro": "\u20ac",
}
"""TeX command names -> replacement. Braces of arguments stay: ``5\\text{ km}`` becomes ``5 { km}``."""
_TEX_NAMES = {name: plain for names, plain in _TEX_COMMANDS.items() for name in names.split()}
_TEX_NAME = re.compile(r"\\([A-Za-z]+)")
_TEX_SYMBOL = re.compile(r"\\([^A-Za-z\s]| )")
_TEX_SYMBOLS = {",": THIN_SPACE, ";": THIN_SPACE, ":": THIN_SPACE, " ": THIN_SPACE, "!": "", "{": "(", "}": ")"}
_POWER_OF_UNIT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9])")
_EXPONENT = re.compile(r"\^\s*\{\s*([-+]?[0-9]+)\s*\}")
_DEGREES = re.compile("\\^\\s*(?:\\{\\s*\u00b0\\s*\\}|\u00b0)")
_ROOT_INDEX = re.compile("\u221a\\s*\\[[^\\[\\]]*\\]")
_FRACTION = re.compile(r"(?:([0-9])\s?)?\\frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_FRACTION_PART = re.compile(r"\s*([-+]?[0-9][0-9,]*(?:\.[0-9]+)?)\s*")
_LONGEST_NAME = 20


def plain_spelling(text: str) -> str:
    """``text`` with its numbers spelled in ASCII where possible.

    >>> plain_spelling("x = \u2212\\\\frac{1}{2}, 10\u2075, \u00bd")
    'x = -1/2, 10^5, 1/2'
    """
    if not text.isascii():
        text = _without_unicode(text)
    if "\\" in text or "{" in text:
        text = _without_tex(text)
    return _EMPHASIS.sub(r" \2 ", text)


def _without_unicode(text: str) -> str:
    text = text.translate(_CHARACTERS)
    text = _DIGITS_OF_OTHER_SCRIPTS.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    text = _SUPERSCRIPTS.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-"), text)
    text = _SUBSCRIPTS.sub("_", text)
    return _VULGAR_FRACTION.sub(_spelled_fraction, text)


def _spelled_fraction(match: re.Match[str]) -> str:
    whole = f"{match[1]} " if match[1] else ""
    return whole + unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/")


def _without_tex(text: str) -> str:
    text = _POWER_OF_UNIT.sub(" ", text.replace("{,}", ","))
    text = _TEX_NAME.sub(lambda match: _TEX_NAMES.get(match[1], match[0]), text)
    text = _TEX_SYMBOL.sub(lambda match: _TEX_SYMBOLS.get(match[1], match[1] if match[1] in "$%#&_" else " "), text)
    text = _ROOT_INDEX.sub("\u221a", _DEGREES.sub("\u00b0", text))
    text = _FRACTION.sub(_plain_fraction, _EXPONENT.sub(r"^\1", text))
    return _hide_arguments(text)


def _plain_fraction(match: re.Match[str]) -> str:
    """``\\frac{1}{2}`` as ``1/2``; after a digit with a space, which makes a mixed number."""
    parts = [_FRACTION_PART.fullmatch(match[2] or match[3] or ""), _FRACTION_PART.fullmatch(match[4] or match[5] or "")]
    if None in parts:
        return match[0]
    whole = f"{match[1]} " if match[1] else ""
    return whole + "/".join(part[1] for part in parts if part)


def _hide_arguments(text: str) -> str:
    """``text`` with every braced argument of an unknown command, root, fraction, exponent or index replaced by
    ``OPAQUE``. Other braces and their content stay."""
    pieces: list[str] = []
    kept_from, depth, hidden_at, hidden_until = 0, 0, -1, -1
    for match in re.finditer(r"[{}]", text):
        place = match.start()
        if match[0] == "{":
            if hidden_at < 0 and (place == hidden_until or _takes_argument(text, place)):
                pieces.append(text[kept_from:place])
                hidden_at = depth
            depth += 1
        else:
            depth -= 1
            if depth == hidden_at:
                pieces.append(OPAQUE)
                kept_from = hidden_until = place + 1
                hidden_at = -1
    pieces.append(OPAQUE if hidden_at >= 0 else text[kept_from:])
    return "".join(pieces)


def _takes_argument(text: str, brace: int) -> bool:
    before = text[max(0, brace - _LONGEST_NAME) : brace].rstrip()
    return before.endswith(("^", "_", "\u221a")) or (before.rpartition("\\")[2].isalpha() and "\\" in before)
