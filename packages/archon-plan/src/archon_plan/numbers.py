"""Numbers as text: memory, times, counts and ranges."""

from __future__ import annotations

from collections.abc import Sequence

GIB = 2**30


def gib(number: float) -> str:
    """Bytes in GiB, or in smaller units below 0.01 GiB: ``12.34 GiB``, ``5.1 MiB``."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= 0.0995 * size:
            return f"{number / size:,.{2 if number < 100 * size else 1}f} {unit}"
    return f"{number:.0f} B"


def seconds(number: float) -> str:
    """A time: ``12.3 s``, ``45.6 ms``, ``7.8 us``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if number >= size:
            return f"{number / size:,.{3 if number < 10 * size else 1}f} {unit}"
    return "0 s" if number < 1e-9 else f"{number / 1e-9:.0f} ns"


def count(number: float) -> str:
    """A large number: ``30.53 B``, ``1.7 M``, ``512``."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """A share: ``41.3%``."""
    return f"{100 * share:.1f}%"


def span(numbers: range | Sequence[int]) -> str:
    """Ascending integers: ``0-3``, ``0-3, 8-11``, ``7``; ``-`` for none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "-"
