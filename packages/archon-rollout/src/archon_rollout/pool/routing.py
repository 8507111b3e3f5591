"""Chooses the server of a request: the least loaded one, and for a prompt's samples the same one.

The load of a server is the number of tokens that its requests may still generate or prefill. Requests of one group
share a prefix, whose keys and values a server computes once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

AFFINITY_SLACK = 2.0
"""A group stays on its server until that has more than this many times the load of the least loaded one, plus the
request."""

MAX_GROUPS = 65536
"""Groups whose server is remembered; the oldest are forgotten."""


class Router:
    """Outstanding tokens and sequences per server, and the server of each group. Not thread-safe.

    Args:
        max_sequences: see ``ServerCapabilities``.
    """

    def __init__(self, max_sequences: int | None = None) -> None:
        self._max_sequences = max_sequences
        self._load: dict[str, int] = {}
        self._sequences: Counter[str] = Counter()
        self._groups: OrderedDict[str, str] = OrderedDict()

    def load(self, server: str) -> int:
        """Outstanding tokens of a server."""
        return self._load.get(server, 0)

    def choose(self, servers: Iterable[str], *, tokens: int, group: str = "", sequences: int = 1) -> str | None:
        """The server of a request, whose tokens and sequences are outstanding until ``finish``; ``None`` if all
        servers are full.

        Args:
            servers: those in service; the first of equally loaded ones is taken.
            tokens: prompt tokens and tokens to generate.
            sequences: number of completions. A server without any takes more than ``max_sequences``.
            group: requests of one group go to the same server while it is not overloaded; empty for none.
        """
        names = [name for name in servers if self._has_room(name, sequences)]
        if not names:
            return None
        least = min(names, key=self.load)
        chosen = least
        usual = self._groups.get(group) if group else None
        if usual in names and self.load(usual) <= AFFINITY_SLACK * self.load(least) + tokens:
            chosen = usual
        if group:
            self._groups[group] = chosen
            self._groups.move_to_end(group)
            if len(self._groups) > MAX_GROUPS:
                self._groups.popitem(last=False)
        self._load[chosen] = self.load(chosen) + tokens
        self._sequences[chosen] += sequences
        return chosen

    def _has_room(self, server: str, sequences: int) -> bool:
        running = self._sequences[server]
        return self._max_sequences is None or not running or running + sequences <= self._max_sequences

    def finish(self, server: str, *, tokens: int, sequences: int = 1) -> None:
        """A request has ended; ``tokens`` and ``sequences`` are the numbers that ``choose`` was given."""
        self._sequences[server] -= sequences
        if not self._sequences[server]:
            del self._sequences[server]
        left = self.load(server) - tokens
        assert left >= 0, f"{server}: more tokens finished than started"
        if left:
            self._load[server] = left
        else:
            self._load.pop(server, None)
