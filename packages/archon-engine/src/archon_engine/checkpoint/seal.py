"""The seal of a checkpoint folder: ``checksums.json``, by which loading detects damaged files and names them.

A file consists of *regions*, its tensors, and a *frame*, the few bytes around them. Each region has a checksum, so a
rank can check only the tensors that it reads. The ranks that load a folder share its files, so every byte is checked
once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from archon_core.errors import DamagedError, WeightsError
from archon_core.ranks.ranks import Ranks
from archon_core.receiving.checksum import checksum_of
from archon_engine.checkpoint.names_in_files import is_plain_name

SEAL = "checksums.json"
_FORMAT = 1


@dataclass(frozen=True)
class Region:
    """A tensor's bytes in a file.

    Attributes:
        start: offset of the first byte.
        size: number of bytes.
        checksum: ``checksum_of`` the bytes.
    """

    start: int
    size: int
    checksum: str


class RegionWriter:
    """Writes tensors into a file and computes a checksum of each.

    A second thread computes the checksum while the kernel copies; memory bandwidth limits both.

    Args:
        file: a file open for writing; it is not closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._checker = ThreadPoolExecutor(1, "archon-checksum")

    def write(self, content: Tensor, place: int) -> Region:
        """Write bytes, uint8 [n] on the CPU, at the file's current position, which is ``place``."""
        checksum = self._checker.submit(checksum_of, content)
        self._file.write(content.numpy().data)
        return Region(place, content.numel(), checksum.result())

    def close(self) -> None:
        """End the thread."""
        self._checker.shutdown()


@dataclass(frozen=True)
class SealedFile:
    """Size and checksums of a file when it was written.

    Attributes:
        size: in bytes.
        frame: checksum of the bytes outside the regions.
        regions: the regions in the order of their offsets.
    """

    size: int
    frame: str
    regions: tuple[Region, ...] = ()


def write_seal(folder: Path, files: Mapping[str, SealedFile]) -> None:
    """Write ``checksums.json``; names are relative to the folder."""
    entries = {name: asdict(file) for name, file in sorted(files.items())}
    (folder / SEAL).write_text(_encode(_FORMAT, entries), encoding="utf-8")


def read_seal(folder: Path) -> dict[str, SealedFile] | None:
    """Read ``checksums.json``; ``None`` if there is none.

    Raises:
        WeightsError: a later version wrote it.
        DamagedError: it is damaged.
    """
    file = folder / SEAL
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        # The list has a checksum, too; otherwise a flipped bit in it would be reported as damage of a good file. The
        # text is compared, not its content: writing is deterministic, so any other text is damage.
        if text != _encode(content["format"], content["files"]):
            raise ValueError("its own checksum does not match")
        if content["format"] != _FORMAT:
            raise WeightsError(
                f"{file}: found format {content['format']}; this version reads {_FORMAT}; upgrade archon-engine, or "
                "delete the file to load without checks"
            )
        # Names are joined to the folder later; with a path in a name, any file of the system could be read.
        if outside := [name for name in content["files"] if not is_plain_name(name)]:
            raise ValueError(f"it names {outside[0]!r}; allowed are names of files in the same folder")
        return {
            name: SealedFile(entry["size"], entry["frame"], tuple(Region(**region) for region in entry["regions"]))
            for name, entry in content["files"].items()
        }
    except FileNotFoundError:
        return None
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{file}: found no readable list of checksums ({error}); copy the file again") from error


def seal_whole(path: Path) -> SealedFile:
    """The seal of a small file, as one frame without regions."""
    content = path.read_bytes()
    return SealedFile(len(content), frame_checksum([content]))


def frame_checksum(pieces: Iterable[bytes | memoryview]) -> str:
    """The checksum of a frame, given as its pieces in order, without the regions between them."""
    checksum = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        checksum.update(piece)
    return checksum.hexdigest()


def check_size(path: Path, sealed: SealedFile) -> None:
    """Raise DamagedError if the file is missing or its size has changed."""
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    size = path.stat().st_size
    if size != sealed.size:
        raise _damaged(path, f"the file has {size} bytes instead of {sealed.size}")


def map_bytes(path: Path, size: int) -> Tensor:
    """The bytes of a file, uint8 [size], memory-mapped: read when they are accessed."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Pages are read while they are summed, so a file larger than memory can be checked.
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def check_region(path: Path, region: Region, found: str) -> None:
    """Raise DamagedError if the checksum ``found`` differs from the region's."""
    if found != region.checksum:
        raise _damaged(path, f"bytes {region.start} to {region.start + region.size} differ from the bytes written")


def check_frame(path: Path, sealed: SealedFile) -> None:
    """Raise DamagedError if bytes outside the regions have changed."""
    with path.open("rb") as file:
        if frame_checksum(_frame_of(file, sealed)) != sealed.frame:
            raise _damaged(path, "bytes between its tensors differ from the bytes written")


def check_file(path: Path, sealed: SealedFile) -> None:
    """Check a whole file.

    Raises:
        DamagedError: the file is damaged.
    """
    check_size(path, sealed)
    content = map_bytes(path, sealed.size)
    for region in sealed.regions:
        check_region(path, region, checksum_of(content[region.start : region.start + region.size]))
    check_frame(path, sealed)


def check_share(folder: Path, ranks: Ranks) -> bool:
    """Check this rank's share of the files of a folder; returns false if the folder has no seal.

    Raises:
        DamagedError: on this rank only, if a file of its share is damaged.
    """
    files = read_seal(folder)
    if files is None:
        return False
    for name in sorted(files)[ranks.rank :: ranks.size]:
        check_file(folder / name, files[name])
    return True


def _frame_of(file: BinaryIO, sealed: SealedFile) -> Iterator[bytes]:
    place = 0
    for region in sealed.regions:
        yield file.read(region.start - place)
        place = region.start + region.size
        file.seek(place)
    yield file.read()


def _encode(format: object, entries: object) -> str:
    text = json.dumps({"format": format, "files": entries}, separators=(",", ":"))
    return f'{text[:-1]},"checksum":"{frame_checksum([text.encode()])}"}}\n'


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(
        f"{path}: found damage: {what}, according to {SEAL}; copy the file again, or use another checkpoint; if it was "
        f"changed on purpose, delete {SEAL}"
    )
