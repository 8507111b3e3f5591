"""The error file of a failing rank, for its launcher.

The format is that of torch's launcher (``torch.distributed.elastic.multiprocessing.errors``), so that ``torchrun``
shows our messages, too, with additional fields for Archon's launcher. Does not import torch, since a rank may fail
before that.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from archon_core.errors import ArchonError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The environment variable that holds the file's path."""

Kind = Literal["user", "told", "connection", "error"]

_CONNECTION_TYPES = ("DistNetworkError", "DistBackendError", "DistStoreError")
_CONNECTION_TEXTS = re.compile(
    r"connection (was (likely )?)?(closed|reset|refused|aborted)|broken pipe|socket closed|timed out waiting"
    r"|remote (peer|server|process) (closed|exited|shut)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RankError:
    """Why a rank failed.

    Attributes:
        kind: ``user`` for an ``ArchonError``; ``told`` for an error relayed from another rank; ``connection`` for a
            lost connection to another rank, which failed before; ``error`` for everything else.
        name: class of the exception.
        message: its text and notes.
        traceback: formatted traceback.
        time: of writing, in seconds since the epoch.
    """

    kind: Kind
    name: str
    message: str
    traceback: str
    time: float


def describe_error(error: BaseException) -> RankError:
    """The ``RankError`` of an exception."""
    kind: Kind = "error"
    if is_connection_loss(error):
        kind = "connection"
    elif isinstance(error, ArchonError):
        kind = "told" if error.is_relayed else "user"
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    return RankError(
        kind, type(error).__name__, "\n".join(lines), "".join(traceback.format_exception(error)), time.time()
    )


def write_error(error: RankError, path: str | None = None) -> None:
    """Write the file.

    Args:
        error: the error.
        path: the file; ``None`` for the path from the launcher, if it set one.
    """
    path = os.environ.get(ERROR_FILE) if path is None else path
    if not path:
        return
    shown = error.message if error.kind in ("user", "told") else error.traceback
    extra = {"py_callstack": shown, "timestamp": str(int(error.time))}
    ours = {"kind": error.kind, "name": error.name, "text": error.message, "traceback": error.traceback}
    message = {"message": f"{error.name}: {error.message}", "extraInfo": extra, "archon": {**ours, "time": error.time}}
    writing = f"{path}.writing"  # renamed when complete, because the launcher may read at any moment
    Path(writing).write_text(json.dumps({"message": message}), encoding="utf-8")
    os.replace(writing, path)


def read_error(path: str | Path) -> RankError | None:
    """Read the file; ``None`` if it is missing or unreadable."""
    try:
        message = json.loads(Path(path).read_text(encoding="utf-8"))["message"]
        ours = message["archon"]
        return RankError(ours["kind"], ours["name"], ours["text"], ours["traceback"], float(ours["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_connection_loss(error: BaseException) -> bool:
    """Whether the first exception of a chain is a lost connection to another rank.

    A rank that fails for another reason may lose connections during clean-up, but later in the chain.
    """
    *_, first = _chain(error)
    named = {base.__name__ for base in type(first).__mro__} & set(_CONNECTION_TYPES)
    return bool(named) or (isinstance(first, RuntimeError | OSError) and bool(_CONNECTION_TEXTS.search(str(first))))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
