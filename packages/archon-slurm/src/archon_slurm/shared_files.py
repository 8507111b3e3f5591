"""Reads JSON files on a file system that several machines share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

READ_TRIES = 3
READ_PAUSE_SECONDS = 0.05


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file that others replace by rename; ``None`` if it is missing.

    Raises:
        OSError: it cannot be read, and not only because another machine has just replaced it.
        json.JSONDecodeError: it is damaged.
    """
    for attempt in range(READ_TRIES):
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError:  # on NFS, a file that another machine replaces can become stale while it is read
            if attempt == READ_TRIES - 1:
                raise
            time.sleep(READ_PAUSE_SECONDS)
        else:
            return data
    raise AssertionError
