"""The token that the trainer and the servers of a run share."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from archon_core.errors import ConfigError
from archon_rollout.server.environment import TOKEN

NAME = "token"


def run_token(folder: Path) -> str:
    """The token: the variable ``ARCHON_SERVER_TOKEN``, or else the content of ``token`` in a folder.

    The first process of a run creates the file, readable by its user only.

    Args:
        folder: ``servers`` in the run folder.

    Raises:
        ConfigError: the file cannot be written or read, or other users can read it.
    """
    return os.environ.get(TOKEN) or read_token(folder) or _create(folder)


def read_token(folder: Path) -> str:
    """The token in a folder; empty without one.

    Raises:
        ConfigError: the file cannot be read, or other users can read it.
    """
    path = folder / NAME
    try:
        with path.open(encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise ConfigError(
                    f"{path}: found owner {found.st_uid} and mode {stat.S_IMODE(found.st_mode):o}; allowed is a file "
                    f"of this user with mode 600; delete it, or set {TOKEN}"
                )
            return file.read().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the token: {error}; set {TOKEN}") from error


def _create(folder: Path) -> str:
    temporary = folder / f".{NAME}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, folder / NAME)  # fails if another process was first, whose token holds
        temporary.unlink()
    except OSError as error:
        raise ConfigError(f"{folder / NAME}: cannot write the token: {error}; set {TOKEN}") from error
    return read_token(folder)
