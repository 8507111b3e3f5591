"""Shows log messages of level INFO and above, by Archon and its plugins, in the progress display."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archon_core.plugins import registry

LOGGERS = ("archon_core", "archon_engine", "archon_train")
"""Packages whose log lines a user sees, beside those of the loaded plugins."""


class _Notes(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(self.format(record))


def shown_packages() -> list[str]:
    """The packages whose log lines a user sees."""
    plugins = (plugin.module.partition(".")[0].partition(":")[0] for plugin in registry().plugins if plugin.specs)
    return sorted({*LOGGERS, *plugins} - {""})  # a logger named "" would be the root


@contextmanager
def shown_log(note: Callable[[str], None]) -> Iterator[None]:
    """Pass every line that Archon or a plugin logs to ``note``, such as ``Progress.note``, until the block ends."""
    handler = _Notes(note)
    levels = {logger: logger.level for logger in map(logging.getLogger, shown_packages())}
    for logger in levels:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
