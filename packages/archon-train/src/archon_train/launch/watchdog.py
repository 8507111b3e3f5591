"""Ends a rank whose launcher is gone: killed without a chance to end its ranks, it would leave them behind.

A thread, since the main one may sit in a collective for as long as another rank takes.
"""

from __future__ import annotations

import os
import threading
import time

PERIOD = 0.5
"""Seconds between two looks."""


def end_with_parent(parent: int) -> None:
    """End this process at once, without clean-up, when ``parent`` is no longer its parent.

    Args:
        parent: process id of the launcher.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD)
        os._exit(1)

    threading.Thread(target=watch, name="archon-watchdog", daemon=True).start()
