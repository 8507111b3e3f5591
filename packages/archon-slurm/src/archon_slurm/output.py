"""Follows a growing text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class FollowedFile:
    """The complete lines of a file, as they come.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def lines(self) -> Iterator[str]:
        """The lines since the last call; an unfinished one comes with a later call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        yield from whole.decode("utf-8", errors="replace").splitlines(keepends=True)

    def show(self) -> None:
        """Print the new lines."""
        for line in self.lines():
            print(line, end="", flush=True)
