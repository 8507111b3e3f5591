"""Creates the folder of a new package atomically."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from archon_core.errors import ConfigError


def check_free(folder: Path) -> None:
    """Raise ConfigError if ``folder`` exists."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"{folder}: found an existing file or folder, which is never overwritten; choose another name or --dir, or "
            "move it away"
        )
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{folder}: found the file {parent} in the path; choose another --dir")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``folder`` at the end of the block, unless the block raises.

    Raises:
        ConfigError: ``folder`` exists or cannot be written.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write it ({error.strerror}); choose another --dir") from error
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp creates it with mode 0700
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
