"""The grammar: parses a text to a ``Layout``, or finds its first syntax fault.

    layout := backend | backend ":" sizes | backend ":(attn:" sizes "|ffn:" sizes ")"
    sizes  := (letter number)+        each letter of d t p c e r at most once, numbers from 1 without leading zeros

Each layout has exactly one text (no spaces, no upper case), so ``str`` inverts parsing. ``rules`` checks the sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from archon_core.errors import did_you_mean
from archon_core.layout.axes import AXIS_NAMES, MAX_SIZE, AxisSizes, list_letters
from archon_core.layout.backends import Backend
from archon_core.layout.diagnostics import Fault, Span
from archon_core.layout.layout import Layout

LETTERS = "".join(AXIS_NAMES)
SIZES = re.compile(rf"(?:[{LETTERS}][0-9]+)+")

_SIZE = re.compile(rf"([{LETTERS}])([0-9]+)")
_WORD = re.compile(r"\w+")
_CLOSING = re.compile(r"[|)]")

_SIZES_RULE = f"letters of {list_letters(LETTERS)}, each at most once and followed by its size"
_NUMBER_RULE = f"sizes from 1 to {MAX_SIZE}, without leading zeros"
_HYBRID_RULE = "the form <backend>:(attn:<sizes>|ffn:<sizes>)"


class UnreadableError(Exception):
    """Carries a fault to ``parse_layout``, which words the fix."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.found)
        self.fault = fault


def read_layout(text: str, backends: Mapping[str, Backend]) -> Layout:
    """Parse ``text`` by the grammar alone.

    Raises:
        UnreadableError: the text does not match the grammar.
    """
    if not text:
        _fail(0, 0, "an empty text", "<backend>:<sizes>")
    if space := re.search(r"\s+", text):
        _fail(*space.span(), "white space", "a layout without any")

    name, _, body = text.partition(":")
    backend = backends.get(name)
    if backend is None:
        _fail_backend(name, backends)
    start = len(f"{name}:")
    if not backend.letters:
        if text != name:
            _fail(len(name), len(text), f"sizes for {name}, which adds no ranks", f"{name!r} by itself")
        return Layout(backend)
    if not body:
        _fail(len(text), len(text), f"no sizes after {name!r}", f"{name}:<sizes>, with {_SIZES_RULE}")
    if re.search(r"[(|)]|^attn|^ffn", body):
        return _read_hybrid(text, start, backend)
    return Layout(backend, _read_sizes(text, start, len(text)))


def _fail(
    start: int, end: int, found: str, allowed: str, *, advice: str = "", candidates: tuple[str, ...] = ()
) -> NoReturn:
    raise UnreadableError(Fault(((start, end),), found, allowed, advice, candidates))


def _fail_backend(name: str, backends: Mapping[str, Backend]) -> NoReturn:
    known = f"a backend, one of {', '.join(sorted(backends))}, then a colon"
    if re.match(r"[(0-9]|$", name) or SIZES.fullmatch(name):
        _fail(0, 0, "no backend before the sizes", known)
    for backend in backends:
        rest = name.removeprefix(backend)
        if rest != name and not rest[0].isalnum():
            _fail(len(backend), len(backend) + 1, f"{rest[0]!r} after the backend {backend!r}", known)
    close = did_you_mean(name.lower(), tuple(backends))
    may_exist = not close and re.fullmatch(r"[A-Za-z][\w-]*", name)
    advice = f"install the package that brings {name!r} (`archon plugins` lists what is there)" if may_exist else ""
    _fail(0, len(name), f"the unknown backend {name!r}{close}", known, advice=advice)


def _read_sizes(text: str, start: int, end: int) -> AxisSizes:
    if start == end:
        _fail(start, end, "no sizes", _SIZES_RULE)
    sizes: dict[str, int] = {}
    spans: dict[str, Span] = {}
    at = start
    while at < end:
        match = _SIZE.match(text, at, end)
        if match is None:
            _fail_size(text, at, end)
        letter, digits = match.groups()
        if letter in sizes:
            once = tuple(text[:first] + text[last:] for first, last in (match.span(), spans[letter]))
            _fail(*match.span(), f"{letter!r} a second time", "each letter once", candidates=once)
        sizes[letter], spans[letter] = _read_number(digits, match.start(2)), match.span()
        at = match.end()
    return AxisSizes(tuple(sizes.items()))


def _read_number(digits: str, start: int) -> int:
    span = (start, start + len(digits))
    if not digits.strip("0"):
        _fail(*span, f"the size {digits}", _NUMBER_RULE)
    if digits.startswith("0"):
        _fail(*span, f"leading zeros in {digits}", _NUMBER_RULE)
    if len(digits) > len(str(MAX_SIZE)):
        _fail(*span, f"a size of {len(digits)} digits", _NUMBER_RULE)
    return int(digits)


def _fail_size(text: str, at: int, end: int) -> NoReturn:
    char = text[at]
    if char in LETTERS:
        _fail(at + 1, at + 1, f"no size after {char!r}", _SIZES_RULE)
    if char in "0123456789":
        stop = at + re.match(r"[0-9]+", text[at:end]).end()
        meant = f"{text[:at]}d{text[at:]}"
        _fail(at, stop, f"the size {text[at:stop]} without a letter before it", _SIZES_RULE, candidates=(meant,))
    if char.isalpha():
        case = "the upper-case letter" if char.lower() in LETTERS else "the unknown letter"
        _fail(at, at + 1, f"{case} {char!r}", _SIZES_RULE)
    _fail(at, at + 1, f"{char!r} where a letter is expected", _SIZES_RULE)


def _read_hybrid(text: str, start: int, backend: Backend) -> Layout:
    attn, at = _read_part("attn", text, _expect("(", text, start))
    ffn, at = _read_part("ffn", text, _expect("|", text, at))
    at = _expect(")", text, at)
    if at < len(text):
        _fail(at, len(text), f"{text[at:]!r} after the closing bracket", _HYBRID_RULE)
    return Layout(backend, attn, ffn)


def _read_part(name: str, text: str, at: int) -> tuple[AxisSizes, int]:
    """The sizes of a part, and the column after them."""
    start = _expect(":", text, _expect(name, text, at))
    closing = _CLOSING.search(text, start)
    end = closing.start() if closing else len(text)
    return _read_sizes(text, start, end), end


def _expect(token: str, text: str, at: int) -> int:
    """The column after ``token``, which must be at ``at``."""
    word = _WORD.match(text, at) if token.isalpha() else None
    end = word.end() if word else min(at + 1, len(text))
    if text[at:end] == token:
        return end
    found = repr(text[at:end]) if at < len(text) else "the end"
    close = did_you_mean(text[at:end], (token,)) if word else ""
    _fail(at, end, f"{found} where {token!r} is expected{close}", _HYBRID_RULE)
