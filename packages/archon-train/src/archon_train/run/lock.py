"""Locks a run folder for one writing process.

It is a kernel lock (``flock``): it ends with the process, however that dies, so there are no stale locks.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archon_core.errors import ConfigError
from archon_core.run_files.lock import LOCK

logger = logging.getLogger(__name__)

UNLOCKED = "run folder %s: cannot lock it against a second process, since this system has no file locks"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing ``folder`` until the block ends.

    Raises:
        ConfigError: another process is writing to it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        logger.warning(UNLOCKED, folder)
        yield
        return
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"run folder {folder}: {file.read() or 'another process'} is writing to it; wait for it, stop it, or "
                "choose another trial_name"
            ) from error
        except OSError:  # some network file systems have no locks
            logger.warning(UNLOCKED, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
