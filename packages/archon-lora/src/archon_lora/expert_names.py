"""The names that files give to numbered experts, as one pattern."""

from __future__ import annotations

from collections.abc import Sequence

PLACEHOLDER = "{expert}"


def numbered(names: Sequence[str]) -> str | None:
    """The pattern of names that differ in one segment, which counts from 0: ``a.{expert}.b``; ``None`` for others."""
    parts = [name.split(".") for name in names]
    if len({len(segments) for segments in parts}) != 1:
        return None
    counted = [
        place
        for place, segments in enumerate(zip(*parts, strict=True))
        if segments == tuple(str(number) for number in range(len(parts)))
    ]
    # A single expert is number 0, as a first layer may be; its number is the one nearer to the end.
    for place in reversed(counted):
        pattern = [*parts[0][:place], PLACEHOLDER, *parts[0][place + 1 :]]
        if all([*segments[:place], PLACEHOLDER, *segments[place + 1 :]] == pattern for segments in parts):
            return ".".join(pattern)
    return None
