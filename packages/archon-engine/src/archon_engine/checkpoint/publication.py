"""Atomic writing of folders and text files.

A folder is written under a hidden name beside its final path, forced to disk, then renamed. If the process dies at any
moment, the final path holds the old folder or the new one, and ``remove_leftovers`` cleans up at the next start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITING = ".writing"
_REPLACED = ".replaced"
_REMOVED = ".removed"


@contextmanager
def publish_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to write into. It becomes ``final`` when the block ends without an exception.

    An existing ``final`` is replaced. If the block raises, its files are removed and ``final`` stays as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    writing = _hidden(final, _WRITING)
    replaced = _hidden(final, _REPLACED)
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        yield writing
        _flush_tree(writing)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    if final.exists():
        # A rename cannot replace a folder that is not empty. Between these two renames the old folder has another name,
        # under which remove_leftovers finds it.
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    writing.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(parent: Path) -> list[Path]:
    """Remove unfinished folders and files from ``parent`` after a process died; return their final paths.

    Call it only if no other process writes into ``parent``.
    """
    if not parent.is_dir():
        return []
    for replaced in parent.glob(f".*{_REPLACED}"):
        final = parent / replaced.name[1 : -len(_REPLACED)]
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
    for removed in parent.glob(f".*{_REMOVED}"):
        shutil.rmtree(removed)
    begun = []
    for writing in sorted(parent.glob(f".*{_WRITING}")):
        begun.append(parent / writing.name[1 : -len(_WRITING)])
        if writing.is_dir():
            shutil.rmtree(writing)
        else:  # from publish_text
            writing.unlink()
    return begun


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: a crash never leaves part of it under its name."""
    removed = _hidden(folder, _REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    _flush(folder.parent)
    shutil.rmtree(removed, ignore_errors=True)


def publish_text(final: Path, text: str) -> None:
    """Write a text file atomically."""
    writing = _hidden(final, _WRITING)
    writing.write_text(text, encoding="utf-8")
    _flush(writing)
    writing.replace(final)
    _flush(final.parent)


def _hidden(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}{suffix}")


def _flush_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _flush(Path(root) / name)
        _flush(Path(root))


def _flush(path: Path) -> None:
    # A rename may reach the disk before the data of the renamed files; a power cut would then leave empty files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
