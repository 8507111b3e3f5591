"""Whether all ranks see one folder: each writes a file, and all read all files."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.cli.findings import Finding
from archon_core.cluster.naming import name_ranks
from archon_core.ranks.ranks import Ranks

VISIBLE_SECONDS = 10.0
"""Time for files of other machines to appear: network file systems keep what they know of a folder for some seconds."""

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class FolderView:
    """What one rank sees.

    Attributes:
        error: why it could not write; empty if it could.
        unseen: ranks whose file it does not find.
        different: ranks whose file it reads with other content.
    """

    error: str = ""
    unseen: tuple[int, ...] = ()
    different: tuple[int, ...] = ()


def look_into(folder: Path, ranks: Ranks, *, patience: float = VISIBLE_SECONDS) -> list[FolderView]:
    """Write a file on every rank and read all of them; returns the views of all ranks. Collective.

    Leaves nothing behind.

    Args:
        folder: created if it is missing.
        ranks: all ranks.
        patience: seconds to wait for files of other ranks.
    """
    token = ranks.broadcast(uuid.uuid4().hex)
    place = folder / f".archon-doctor-{token}"
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    contents = ranks.gather(f"{token} {ranks.rank} {time.time()}\n")
    error = _describe_failure(lambda: _write(place / f"rank-{ranks.rank}", contents[ranks.rank]))
    written = [not text for text in ranks.gather(error)]
    unseen, different = _wait_for(place, contents, written, patience)
    views = ranks.gather(FolderView(error, unseen, different))
    with contextlib.suppress(OSError):
        (place / f"rank-{ranks.rank}").unlink()
    ranks.barrier()
    for path in (place, *created):
        with contextlib.suppress(OSError):  # not empty, or removed by another rank
            path.rmdir()
    return views


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def _describe_failure(act: Callable[[], None]) -> str:
    try:
        act()
    except OSError as error:
        return str(error)
    return ""


def _wait_for(
    place: Path, contents: Sequence[str], written: Sequence[bool], patience: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranks whose files are unseen, and different, when all are there or the time is over."""
    end = time.monotonic() + patience
    while True:
        found = [_read(place / f"rank-{rank}") for rank in range(len(contents))]
        unseen = tuple(rank for rank, text in enumerate(found) if text is None and written[rank])
        different = tuple(rank for rank, text in enumerate(found) if text is not None and text != contents[rank])
        if not (unseen or different) or time.monotonic() > end:
            return unseen, different
        time.sleep(POLL_SECONDS)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return None


def compare_folders(views: Sequence[FolderView], hosts: Sequence[str], folder: str) -> Iterator[Finding]:
    """Findings that name the ranks without the folder that the others share; or one line."""
    subject, advice = "shared folder", f"mount the same file system as {folder} on all machines, or name another folder"
    failed = [rank for rank, view in enumerate(views) if view.error]
    for rank in failed:
        found = f"{name_ranks([rank], hosts)} cannot write: {views[rank].error}"
        yield Finding(subject, "failure", found, f"on {hosts[rank]}: check the mount and the permissions of {folder}")
    groups = _groups([rank for rank in range(len(views)) if rank not in failed], views)
    if len(groups) > 1:
        others = f"the {len(groups[0])} ranks that share {folder}" if len(groups[0]) > 1 else "every other rank"
        for group in groups[1:]:
            found = f"{name_ranks(group, hosts)}: another folder than that of {others}; files written there are unseen"
            yield Finding(subject, "failure", found, advice)
    elif groups:
        for rank, view in enumerate(views):
            if view.unseen or view.different:
                seen = [*view.unseen, *view.different]
                found = f"{name_ranks([rank], hosts)} does not read what {name_ranks(seen, hosts)} wrote in {folder}"
                yield Finding(subject, "failure", found, f"on {hosts[rank]}: check the mount of {folder}")
    if not failed and not any(view.unseen or view.different for view in views):
        yield Finding(subject, "ok", f"{folder}: every rank reads what every other one writes")


def _groups(ranks: Sequence[int], views: Sequence[FolderView]) -> list[list[int]]:
    """Ranks that see one another's files, directly or through others; the largest group first."""
    groups: list[list[int]] = []
    for rank in ranks:
        linked = [group for group in groups if any(_see(rank, other, views) for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append(sorted([rank, *(other for group in linked for other in group)]))
    return sorted(groups, key=lambda group: (-len(group), group))


def _see(a: int, b: int, views: Sequence[FolderView]) -> bool:
    return b not in (*views[a].unseen, *views[a].different) or a not in (*views[b].unseen, *views[b].different)
