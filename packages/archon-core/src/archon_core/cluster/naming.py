"""Names ranks and their hosts in findings. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def name_ranks(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """Ranks with their hosts, for messages.

    Args:
        ranks: some ranks.
        hosts: of all ranks.

    >>> name_ranks([0, 1, 2, 5], ["a", "a", "b", "b", "c", "c"])
    'ranks 0-1 (a), rank 2 (b), rank 5 (c)'
    """
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"{'rank' if len(own) == 1 else 'ranks'} {spans(own)} ({host})" for host, own in by_host.items())


def spans(numbers: Sequence[int]) -> str:
    """Increasing numbers in short.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def by_value(values: Sequence[T]) -> Mapping[T, list[int]]:
    """Value -> the ranks that have it; the most frequent value first, and of equals that of the lowest rank."""
    return {
        value: [rank for rank, other in enumerate(values) if other == value]
        for value, _ in Counter(values).most_common()
    }


def majority(values: Sequence[T]) -> T | None:
    """The value that more than half of the ranks have, if there is one."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None
