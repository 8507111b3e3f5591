"""Guesses the intended layout of a malformed text. Guesses are validated before they are suggested."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping

from archon_core.layout.axes import MAX_SIZE
from archon_core.layout.backends import Backend
from archon_core.layout.syntax import LETTERS, SIZES

_LOOSE_SIZE = re.compile(rf"([{LETTERS}])[^a-z0-9|()]*([0-9]+)")


def mended(text: str, backends: Mapping[str, Backend]) -> Iterator[str]:
    """Layouts that ``text`` may mean, closest first."""
    plain = re.sub(r"\s+", "", text)
    yield plain
    name, body = _split(plain.lower(), backends)
    backend = backends.get(name)
    if backend is None:
        return
    attn, ffn = (_sizes(part) for part in _parts(body))
    if ffn:
        yield f"{name}:(attn:{attn or _ranks_of(ffn)}|ffn:{ffn})"
    yield f"{name}:{attn or ffn}"
    yield backend.example()


def _split(text: str, backends: Mapping[str, Backend]) -> tuple[str, str]:
    """The guessed backend, and the text of the sizes."""
    for name in sorted(backends, key=len, reverse=True):
        if text.startswith(name):
            return name, text.removeprefix(name)
    word = re.split(r"[^a-z0-9_-]", text, maxsplit=1)[0]
    if SIZES.fullmatch(word) or not word[:1].isalpha():
        trainers = (name for name, backend in backends.items() if backend.kind == "train")
        return next(trainers, ""), text
    close = difflib.get_close_matches(word, list(backends), n=1)
    return next(iter(close), ""), text.removeprefix(word)


def _parts(body: str) -> tuple[str, str]:
    """The sizes of attention (all of them in a flat layout) and of the experts."""
    first, _, second = body.partition("|") if "|" in body else body.partition("ffn")
    return (second, first) if "ffn" in first else (first, second)


def _ranks_of(ffn: str) -> str:
    """The data size with which attention has as many ranks as ``ffn``."""
    return f"d{math.prod(int(size) for letter, size in _LOOSE_SIZE.findall(ffn) if letter in 'det')}"


def _sizes(text: str) -> str:
    """The recognisable sizes, the first of each letter."""
    sizes: dict[str, str] = {}
    for letter, digits in _LOOSE_SIZE.findall(text):
        size = digits.lstrip("0")
        if 0 < len(size) <= len(str(MAX_SIZE)):
            sizes.setdefault(letter, size)
    return "".join(f"{letter}{size}" for letter, size in sizes.items())
