"""Patterns for dotted names of modules and weights: ``layers.{layer}.mlp.{part}.weight``.

A placeholder matches one segment; with three dots, as in ``mtp.{rest...}``, it matches one or more. Weight rules and
parallel plans use these patterns. A weight rule has the same placeholders on both sides, so it works in both
directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

_PLACEHOLDER = re.compile(r"\{(\w+)(\.\.\.)?\}")

Bindings = Mapping[str, str]


@dataclass(frozen=True)
class NamePattern:
    """A dotted name with placeholders.

    Attributes:
        text: the pattern as written. A placeholder that occurs twice must match the same text both times.
    """

    text: str

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(match[1] for match in _PLACEHOLDER.finditer(self.text))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        seen: set[str] = set()
        parts: list[str] = []
        end = 0
        for match in _PLACEHOLDER.finditer(self.text):
            parts.append(re.escape(self.text[end : match.start()]))
            name = match[1]
            segments = ".+" if match[2] else "[^.]+"
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{segments})")
            seen.add(name)
            end = match.end()
        parts.append(re.escape(self.text[end:]))
        return re.compile("".join(parts))

    def match(self, name: str) -> dict[str, str] | None:
        """The text of each placeholder in ``name``; ``None`` if ``name`` does not match."""
        found = self._regex.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, bindings: Bindings) -> str:
        """The name with its placeholders replaced."""
        return _PLACEHOLDER.sub(lambda match: bindings[match[1]], self.text)


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` matches ``pattern``."""
    return _compiled(pattern).match(name) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether ``name`` matches one of ``patterns``."""
    return any(matches(pattern, name) for pattern in patterns)


@cache
def _compiled(pattern: str) -> NamePattern:
    # Plans hold a few dozen patterns, each matched against every module of a model.
    return NamePattern(pattern)
