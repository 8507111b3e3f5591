"""What a failing rank leaves behind for whoever started it.

The file has the form in which torch's own launcher reads it (``torch.distributed.elastic.multiprocessing.errors``), so
that ``torchrun`` shows our messages too; ours finds more in it. Written and read without torch, since a rank may fail
before that is imported.
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
        kind: ``user`` for an ``ArchonError``; ``told`` for one that only repeats what another rank said of itself;
            ``connection`` when it lost the connection to another rank, which therefore failed before; ``error`` for
            everything else.
        name: class of the exception.
        message: its text and notes.
        traceback: where it was raised.
        time: when it was written, in seconds since 1970.
    """

    kind: Kind
    name: str
    message: str
    traceback: str
    time: float


def describe_error(error: BaseException) -> RankError:
    """An exception as what is kept of it."""
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
        error: what is told.
        path: where to; ``None`` for where the launcher wants it, which may be nowhere.
    """
    path = os.environ.get(ERROR_FILE) if path is None else path
    if not path:
        return
    shown = error.message if error.kind in ("user", "told") else error.traceback
    extra = {"py_callstack": shown, "timestamp": str(int(error.time))}
    ours = {"kind": error.kind, "name": error.name, "text": error.message, "traceback": error.traceback}
    message = {"message": f"{error.name}: {error.message}", "extraInfo": extra, "archon": {**ours, "time": error.time}}
    writing = f"{path}.writing"  # whoever reads it may read at any moment
    Path(writing).write_text(json.dumps({"message": message}), encoding="utf-8")
    os.replace(writing, path)


def read_error(path: str | Path) -> RankError | None:
    """Read the file; ``None`` when the rank left none that can be read."""
    try:
        message = json.loads(Path(path).read_text(encoding="utf-8"))["message"]
        ours = message["archon"]
        return RankError(ours["kind"], ours["name"], ours["text"], ours["traceback"], float(ours["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_connection_loss(error: BaseException) -> bool:
    """Whether the first exception of a chain says that another rank is gone.

    A rank that fails for a reason of its own may lose connections while it cleans up; the reason comes first.
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
