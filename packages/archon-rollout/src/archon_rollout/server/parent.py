"""Ends a process with the one that started it."""

from __future__ import annotations

import os
import threading
import time

from archon_core.serving.arena_file import sweep_arenas

PARENT_CHECK_SECONDS = 0.5


def end_with(parent: str | None) -> None:
    """End this process at once when ``parent`` is no longer its parent; ``None`` to live on.

    A killed trainer cannot stop its servers, nor remove its shared memory. A thread checks for that, because the main
    thread may wait.
    """
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_CHECK_SECONDS)
        try:
            sweep_arenas()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="archon-watchdog", daemon=True).start()
