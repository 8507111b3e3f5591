"""Brings what Archon logs at level INFO and above to where the user watches a run, or into a file of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from archon_core.contracts.pipeline import RECORD_LOGGER
from archon_engine.checkpoint.publication import publish_text

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
    """Hand every line that Archon logs to ``note``, such as ``Progress.note``, until the block ends."""
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


@contextmanager
def recorded_pipelines(folder: Path) -> Iterator[None]:
    """Write the timed steps that engines give out as ``pipeline-<role>.json`` until the block ends."""
    logger, handler = logging.getLogger(RECORD_LOGGER), _Recordings(folder)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a file, not something to read
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _Recordings(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        publish_text(self._folder / f"pipeline-{record.role}.json", record.getMessage())  # type: ignore[attr-defined]


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
