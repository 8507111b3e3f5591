"""Brings what core logs at level INFO and above to where the user watches a run, or into a file of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER = "archon_core"


class _Notes(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(self.format(record))


@contextmanager
def shown_log(note: Callable[[str], None]) -> Iterator[None]:
    """Hand every line that core logs to ``note``, such as ``Progress.note``, until the block ends."""
    logger, handler = logging.getLogger(LOGGER), _Notes(note)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def written_log(file: Path, name: str) -> Iterator[None]:
    """Append what the logger ``name`` says, and nothing beside it, to ``file`` until the block ends."""
    logger, handler = logging.getLogger(name), logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
