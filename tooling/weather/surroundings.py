"""Faults of the surroundings: full shared memory, an unreadable registry, a control call that nobody waits for."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from archon_core.serving.arena_file import FOLDER as SHARED_MEMORY

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 0x40000
MEMORY_BYTES = 8 * 2**20


def private_shared_memory() -> bool:
    """Give this process and its children a small private ``/dev/shm``; false without the rights for that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS):
        return False
    size = f"size={MEMORY_BYTES}".encode()
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    return libc.mount(b"tmpfs", os.fsencode(SHARED_MEMORY), b"tmpfs", 0, size) == 0


class FullMemory:
    """Fills ``/dev/shm``, and frees it.

    Args:
        private: whether it belongs to the storm. Otherwise it must not be filled.
    """

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self._filler = SHARED_MEMORY / "storm-filler"

    def fill(self) -> None:
        """Leave no free page."""
        if self._filler.exists():
            return
        descriptor = os.open(self._filler, os.O_RDWR | os.O_CREAT, 0o600)
        step = MEMORY_BYTES
        size = 0
        while step >= 4096:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
        os.close(descriptor)

    def free(self) -> None:
        """Remove the filler."""
        self._filler.unlink(missing_ok=True)


def refuse_memory(seconds: float) -> None:
    """Let this process find no shared memory for some time, where ``/dev/shm`` belongs to others too."""
    real, until = os.posix_fallocate, time.monotonic() + seconds

    def allocate(descriptor: int, start: int, size: int) -> None:
        if time.monotonic() < until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate = real
        real(descriptor, start, size)

    os.posix_fallocate = allocate


def unreadable_registry(folder: Path, variant: str) -> Callable[[], None]:
    """Make a registry unreadable; returns what mends it."""
    if folder.is_symlink():  # it is lost already
        return lambda: None
    if variant == "torn entry":
        torn = folder / "torn.server.json"
        torn.write_text('{"record": {"addr', encoding="utf-8")
        return lambda: torn.unlink(missing_ok=True)
    # As if the share were unmounted: a link to nowhere, so that nobody can create the folder again.
    away = folder.with_name("registry-away")
    folder.rename(away)
    folder.symlink_to(folder.with_name("nowhere") / "at-all")

    def mend() -> None:
        folder.unlink()
        away.rename(folder)

    return mend


def late_pause(address: str, incarnation: str, token: str) -> bool:
    """Send a pause and hang up before anybody answers."""
    host, _, port = address.rpartition(":")
    body = json.dumps({"mode": "keep", "incarnation": incarnation})
    lines = ["POST /pause HTTP/1.1", f"Host: {address}", f"Authorization: Bearer {token}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", body]
    try:
        with socket.create_connection((host, int(port)), timeout=1.0) as connection:
            connection.sendall("\r\n".join(lines).encode())
    except OSError:
        return False
    return True
