"""The file of an arena in shared memory: creation, opening, and removal of files that dead trainers left.

``multiprocessing.shared_memory`` is not used: its resource tracker removes segments that other processes still map.
A trainer holds an exclusive ``flock`` on its arena while it lives; the kernel drops the lock with the process, however
it ends. The next trainer of the same user on the host removes every arena whose lock it can take.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
from pathlib import Path

from archon_core.errors import ServerError
from archon_core.serving.arena import ArenaHeader

FOLDER = Path("/dev/shm")

_PREFIX = "archon-weights"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-[\w.]+-[0-9a-f]{{8}}", re.ASCII)


class Arena:
    """A mapped arena; a context manager. Only ``create_arena`` and ``open_arena`` make one.

    Attributes:
        name: name of the file.
        header: its header.
        memory: the mapping; read-only unless this process created the arena.
    """

    def __init__(self, name: str, header: ArenaHeader, memory: mmap.mmap, descriptor: int | None, folder: Path) -> None:
        self.name = name
        self.header = header
        self.memory = memory
        self._descriptor = descriptor
        self._folder = folder

    @property
    def is_owner(self) -> bool:
        """Whether this process created the arena and has not closed it."""
        return self._descriptor is not None

    def slot(self, slot: int, n_bytes: int) -> memoryview:
        """The first ``n_bytes`` of a slot."""
        assert n_bytes <= self.header.slot_bytes, f"{n_bytes} bytes in a slot of {self.header.slot_bytes}"
        start = self.header.start_of(slot)
        return memoryview(self.memory)[start : start + n_bytes]

    def close(self) -> None:
        """Unmap; the owner also removes the file. Idempotent."""
        if self._descriptor is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(BufferError):  # a tensor may still refer to the mapping, which ends with it
            self.memory.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def create_arena(header: ArenaHeader, *, run: str, folder: Path = FOLDER) -> Arena:
    """Create the arena of a run, with all its memory allocated.

    Args:
        header: sizes.
        run: id of the run, part of the name.
        folder: a folder of a memory file system.

    Raises:
        ServerError: there is no shared memory, not enough, or the system refuses it.
    """
    word = re.sub(r"[^\w.]", "_", run, flags=re.ASCII)[:80] or "run"
    if not folder.is_dir():
        raise ServerError(f"shared memory: found no folder {folder}; use rollout.weight_transport=disk on this system")
    while True:
        name = f"{_PREFIX}-{os.getuid()}-{word}-{secrets.token_hex(4)}"
        try:
            descriptor = os.open(
                folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o600
            )
        except OSError as error:
            raise _refused(folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)  # another trainer's sweep removed it before it was locked
                continue
            # With ftruncate alone, a full file system would kill the process at the first touch (SIGBUS).
            os.posix_fallocate(descriptor, 0, header.n_bytes)
            memory = mmap.mmap(descriptor, header.n_bytes)
        except OSError as error:
            (folder / name).unlink(missing_ok=True)
            os.close(descriptor)
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise _refused(folder, error) from error
            free = os.statvfs(folder)
            raise ServerError(
                f"shared memory: found {free.f_bavail * free.f_frsize / 2**20:.0f} MiB free in {folder}; the arena "
                f"needs {header.n_bytes / 2**20:.0f} MiB, twice the size of a bucket; lower rollout.weight_bucket_mb, "
                "give the container more shared memory (docker run --shm-size), or use rollout.weight_transport=disk"
            ) from error
        header.write(memory)
        return Arena(name, header, memory, descriptor, folder)


def _refused(folder: Path, error: OSError) -> ServerError:
    return ServerError(
        f"shared memory: cannot create a file in {folder} ({error.strerror or error}); remove the cause, or use "
        "rollout.weight_transport=disk"
    )


def open_arena(name: str, *, folder: Path = FOLDER) -> Arena:
    """Map another process's arena read-only.

    Raises:
        ServerError: the name is not that of an arena, the file does not exist, belongs to another user, or is no arena.
    """
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise ServerError(f"shared memory: found the name {name!r}; allowed are names of arenas; check the sender")
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ServerError(
            f"shared memory {name!r}: cannot open it ({error.strerror}); the transport shm works on one host and for "
            "one user, and containers need a common /dev/shm; use rollout.weight_transport=disk otherwise"
        ) from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise ServerError(
                f"shared memory {name!r}: found a file of user {found.st_uid} with mode "
                f"{stat.S_IMODE(found.st_mode):o}; allowed are private files of user {os.getuid()}"
            )
        memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise ServerError(f"shared memory {name!r}: found an empty file; the trainer is only creating it") from error
    finally:
        os.close(descriptor)
    return Arena(name, ArenaHeader.read(memory, name=name), memory, None, folder)


def sweep_arenas(folder: Path = FOLDER) -> list[str]:
    """Remove the arenas of this user whose trainers are dead; return their names."""
    removed = []
    for path in sorted(folder.glob(f"{_PREFIX}-{os.getuid()}-*")) if folder.is_dir() else []:
        if _NAME.fullmatch(path.name) is None:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # removed meanwhile, or not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        except BlockingIOError:
            pass  # its trainer lives
        finally:
            os.close(descriptor)
    return removed
