"""Chooses the server of a request: the least loaded one, and for a prompt's samples the same one.

The load of a server is the number of tokens that its requests may still generate or prefill. Requests of one group
share a prefix, whose keys and values a server computes once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

AFFINITY_SLACK = 2.0
"""A group stays on its server until that has more than this many times the load of the least loaded one, plus the
request."""

MAX_GROUPS = 65536
"""Groups whose server is remembered; the oldest are forgotten."""


class Router:
    """Outstanding tokens per server, and the server of each group. Not thread-safe."""

    def __init__(self) -> None:
        self._load: dict[str, int] = {}
        self._groups: OrderedDict[str, str] = OrderedDict()

    def load(self, server: str) -> int:
        """Outstanding tokens of a server."""
        return self._load.get(server, 0)

    def choose(self, servers: Iterable[str], *, tokens: int, group: str = "") -> str:
        """The server of a request, whose tokens are outstanding until ``finish``.

        Args:
            servers: those in service, at least one; the first of equally loaded ones is taken.
            tokens: prompt tokens and tokens to generate.
            group: requests of one group go to the same server while it is not overloaded; empty for none.
        """
        names = list(servers)
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
        return chosen

    def finish(self, server: str, *, tokens: int) -> None:
        """A request has ended; ``tokens`` is the number that ``choose`` was given."""
        left = self.load(server) - tokens
        assert left >= 0, f"{server}: more tokens finished than started"
        if left:
            self._load[server] = left
        else:
            self._load.pop(server, None)
