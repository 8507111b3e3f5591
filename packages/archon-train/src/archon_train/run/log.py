"""Shows Archon's log messages of level INFO and above in the progress display."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGERS = ("archon_core", "archon_engine", "archon_train")
"""Parents of the loggers whose lines a user sees."""


class _Notes(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(self.format(record))


@contextmanager
def shown_log(note: Callable[[str], None]) -> Iterator[None]:
    """Pass every line that Archon logs to ``note``, such as ``Progress.note``, until the block ends."""
    handler = _Notes(note)
    levels = {logger: logger.level for logger in map(logging.getLogger, LOGGERS)}
    for logger in levels:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
