"""``IdleTimes``: how long servers had no request of this client."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class IdleTimes:
    """Adds up, over servers, the time without a request.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._busy: dict[str, bool] = {}
        self._idle = self._served = 0.0

    def observe(self, servers: Iterable[str], busy: Callable[[str], bool]) -> None:
        """Account for the time since the last call; call it before and after every change.

        Args:
            servers: in service now.
            busy: whether a server has a request now.
        """
        now, names = self._clock(), list(servers)
        for name, since in self._since.items():
            self._served += now - since
            if not self._busy[name]:
                self._idle += now - since
        self._since = dict.fromkeys(names, now)
        self._busy = {name: busy(name) for name in names}

    def share(self) -> float:
        """The share of idle time since the last call of this method, 0 to 1; 0 without a server in service."""
        idle, served, self._idle, self._served = self._idle, self._served, 0.0, 0.0
        return idle / served if served > 0 else 0.0
