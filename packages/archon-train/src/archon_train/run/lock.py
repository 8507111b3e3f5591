"""One process at a time writes a run folder.

The lock is the kernel's: it ends with the process that holds it, however that dies, so none is ever left behind.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archon_core.errors import ConfigError

logger = logging.getLogger(__name__)

UNLOCKED = "run folder %s: nothing keeps a second process from writing to it, since there are no file locks here"

NAME = ".lock"
"""The file, in the run folder; it says who holds or held it. Removing it at the end would let two processes in."""


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing ``folder`` until the block ends.

    Raises:
        ConfigError: another process is writing it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        logger.warning(UNLOCKED, folder)
        yield
        return
    with (folder / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"run folder {folder}: {file.read() or 'another process'} is writing to it; wait for it or stop it, "
                "or choose another trial_name"
            ) from error
        except OSError:  # some network file systems have no locks
            logger.warning(UNLOCKED, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
