"""The folder of a new package: there whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from archon_core.errors import ConfigError


def check_free(folder: Path) -> None:
    """Raise ConfigError when something is there already."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"{folder}: found something there already, and nothing is overwritten; give another name or --dir, or move "
            "it away"
        )
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{folder}: {parent} is a file; give another --dir")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``folder`` at the end of the block, unless that raises.

    Raises:
        ConfigError: something is there already, or the folder cannot be written.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder}: it cannot be written ({error.strerror}); give another --dir") from error
    try:
        yield draft
        draft.chmod(0o755)  # a temporary folder is its user's alone
        check_free(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write ``files``, path -> text, below ``folder``."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
