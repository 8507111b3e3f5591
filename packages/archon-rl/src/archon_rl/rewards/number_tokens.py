"""Finds the numbers of a text in plain spelling, as opposed to digits that are part of something else.

Values are exact fractions, never floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from archon_rl.rewards.number_spelling import OPAQUE, THIN_SPACE

MOST_DIGITS = 500
"""Numbers with more digits or a larger exponent of ten are ignored: exact arithmetic with them would be slow."""


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        value: without the percent sign: 50 for 50%.
        is_percentage: whether a percent sign, or the word, follows.
    """

    value: Fraction
    is_percentage: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        A percentage equals a number without a percent sign in two ways, because questions ask for either: 50% is 50,
        the sign being a unit, and 50% is 1/2.
        """
        if self.is_percentage == other.is_percentage:
            return self.value == other.value
        percentage, plain = (self, other) if self.is_percentage else (other, self)
        return plain.value in (percentage.value, percentage.value / 100)


@dataclass(frozen=True)
class Token:
    """A number, or another token with digits.

    Attributes:
        number: ``None`` if it is not a number.
        start: index of the first digit or decimal point.
        end: index after the last character.
    """

    number: Number | None
    start: int
    end: int


# Letters of scripts that separate words by spaces: a number beside one is part of a word. (5個 is five.)
LETTER = f"A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff{OPAQUE}"
CURRENCY = "$\u20ac\u00a3\u00a5\u20b9"
# Units written without a space. Not k, M, B and x: 5k is not 5, and 5x is a product.
_UNITS = (
    "mm|cm|dm|km|m|in|ft|yd|mi|mg|kg|g|lbs?|oz|ml|mL|cl|l|L|gal|s|secs?|mins?|min|hrs?|h|days?|hours?|minutes?|seconds?|"
    "weeks?|months?|years?|yrs?|am|pm|AM|PM|mph|kph|kWh|kW|Hz|kHz|MHz|GHz|kB|KB|MB|GB|TB|USD|EUR|GBP|cents?|ct|dollars?"
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# One kind of separator in a number, groups of three, and no leading zero: 0,500 and 1,23 have decimal commas.
_SEPARATORS = (",", "'", "_", THIN_SPACE, "[ ]")
_GROUPED = "|".join(rf"[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{3}})+(?![0-9])" for separator in _SEPARATORS)
_INTEGER = rf"(?:{_GROUPED}|[0-9]++)"
# A point without digits before it is a decimal point, but not the last one of an ellipsis.
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]++)?|(?<![.0-9])\.[0-9]++)"
# Lookaheads: what must not follow a number, since the digits would then be part of something else.
_END = rf"""
    (?![0-9]|[.,:'{THIN_SPACE}][0-9])                      # decimal commas, versions, times, feet and inches
    (?!-[0-9]+[-/][0-9]|-0[0-9])                           # dates, 1-1/2
    (?!\s?(?:\^|\*\*\s?[0-9(]|\u221a|\\[A-Za-z]))          # powers, products with a root or a constant
    (?!\s?/\s?[-+]?\.?[0-9])                               # fractions, where one matches its end is elsewhere
    (?!\.\\[A-Za-z]|\.[a-z](?![{LETTER}])|\u2030)          # 0.\overline{{3}}, 3.x, per mille
    (?:(?![{LETTER}])|(?=(?:{_UNITS})(?![{LETTER}0-9])))   # products with a variable, ordinals, names
"""
# Possessive quantifiers (++) keep digits together: after 12^2 has failed, the pattern must not try 1.
_TOKEN = re.compile(
    rf"""
    (?:                                          # a mixed number, a power of ten, a fraction, a decimal number
        (?P<whole>[0-9]++)[ {THIN_SPACE}](?P<top>[0-9]++)/(?P<bottom>[0-9]++) {_END}
      | (?:(?P<mantissa>{_DECIMAL})\s?[\u00d7x*]\s?)?10\s?(?:\^|\*\*)\s?(?P<power>[-+]?[0-9]++) {_END}
      | (?P<numerator>{_DECIMAL})\s?/\s?(?P<denominator>[-+]?{_DECIMAL}) {_END}
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]++))? {_END}
    )
    (?P<scale>(?:[\s-]?(?i:{"|".join(_SCALES)})(?![{LETTER}0-9])){{0,3}})
    (?P<percent>\s?(?:%|(?i:percent|per[ ]cent|pct)(?![{LETTER}0-9])))?
  | (?P<part>                                    # digits that are none of these, with all that is joined to them
        [0-9][0-9{LETTER}]*+ (?:(?:[-.,:'{THIN_SPACE}]|\*\*|\s?/\s?|\s?\^\s?)[-+]?\.?[0-9{LETTER}]++)*+
      | [\u221a^]\s?[-+]?\(?[0-9{LETTER}.]++
      | \u00b1\s?[{CURRENCY}]?\s?[0-9.,]++
    )
  | (?P<word>                                    # a word, which may have digits
        [{LETTER}][0-9{LETTER}]*+ (?:[-./'^][0-9{LETTER}]++)*+)
    """,
    re.VERBOSE,
)
_SIGN_WINDOW = 24
"""Number of characters before a number to search for its sign."""
_SIGN = re.compile(
    rf"""
    (?:^|[^0-9{LETTER}%)\]}}-]) -(?:[{CURRENCY}]\s?)?\(?$    # directly before; after a value it is an operator
  | [=\u2248({{\[]\s*-\s+[{CURRENCY}]?$                # with a space only where no value can stand before it
  | (?i:negative)\s+[{CURRENCY}]?$
    """,
    re.VERBOSE,
)
_SPACED_SIGN_AT_START = re.compile(rf"[\s*`(${{]*-\s*[{CURRENCY}]?")
_MINUS = re.compile(rf"(?:^|(\S+)\s+)(?i:minus)\s+[{CURRENCY}]?$")
_VALUE = re.compile(r".*[0-9)\]}%]|[A-Za-z]")


def number_tokens(text: str) -> Iterator[Token]:
    """Numbers of a text in plain spelling, and other tokens that start with a digit; words with digits are skipped."""
    for match in _TOKEN.finditer(text):
        if match["word"] is None:
            yield Token(_number(match), match.start(), match.end())


def last_token_number(text: str) -> Number | None:
    """The last number of a text in plain spelling."""
    matches = [match for match in _TOKEN.finditer(text) if match["word"] is None]
    return next((number for number in map(_number, reversed(matches)) if number is not None), None)


def _number(match: re.Match[str]) -> Number | None:
    value = None if match["part"] else _value(match)
    if value is None:
        return None
    for scale in re.findall(r"[a-z]+", match["scale"].lower()):
        value *= _SCALES[scale]
    negative = _is_negative(match.string, match.start())
    return Number(-value if negative else value, match["percent"] is not None)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["whole"]:
        whole, top, bottom = (_fraction(match[name]) for name in ("whole", "top", "bottom"))
        if whole is None or top is None or bottom is None or not 0 < top < bottom:
            return None
        return whole + top / bottom
    if match["power"]:
        return _fraction(match["mantissa"] or "1", match["power"])
    if match["numerator"]:
        top, bottom = _fraction(match["numerator"]), _fraction(match["denominator"])
        return None if top is None or not bottom else top / bottom
    return _fraction(match["decimal"], match["exponent"] or "0")


def _fraction(digits: str, exponent: str = "0") -> Fraction | None:
    """The value of a decimal number; ``None`` if it is too long."""
    digits = re.sub(rf"[,_' {THIN_SPACE}]", "", digits)
    if len(digits) > MOST_DIGITS or len(exponent) > len(str(MOST_DIGITS)) + 1 or abs(int(exponent)) > MOST_DIGITS:
        return None
    return Fraction(digits) * Fraction(10) ** int(exponent)


def _is_negative(text: str, start: int) -> bool:
    before = text[max(0, start - _SIGN_WINDOW) : start]
    if _SIGN.search(before) or (start < _SIGN_WINDOW and _SPACED_SIGN_AT_START.fullmatch(before)):
        return True
    minus = _MINUS.search(before)
    return minus is not None and not (minus[1] and _VALUE.fullmatch(minus[1]))
