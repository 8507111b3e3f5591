"""The seal of a checkpoint folder: ``checksums.json``, which lets loading refuse a damaged file by name.

A file consists of *regions*, its tensors, and a *frame*, the small rest. Each region has a checksum, so that a rank can
check just the tensors that it reads. The ranks that load a folder share out its files, so that every byte is checked
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
from archon_engine.checkpoint.checksum import checksum_of
from archon_engine.checkpoint.names_in_files import is_plain_name

SEAL = "checksums.json"
_FORMAT = 1


@dataclass(frozen=True)
class Region:
    """A tensor's bytes in a file.

    Attributes:
        start: the first byte.
        size: how many.
        checksum: ``checksum_of`` them.
    """

    start: int
    size: int
    checksum: str


class RegionWriter:
    """Writes tensors into a file, with a checksum of each.

    A second thread adds up the checksum while the kernel copies: both take about as long as memory needs.

    Args:
        file: open for writing; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._checker = ThreadPoolExecutor(1, "archon-checksum")

    def write(self, content: Tensor, place: int) -> Region:
        """Write bytes, uint8 [n] on the CPU, where the file stands, which is ``place``."""
        checksum = self._checker.submit(checksum_of, content)
        self._file.write(content.numpy().data)
        return Region(place, content.numel(), checksum.result())

    def close(self) -> None:
        """End the thread."""
        self._checker.shutdown()


@dataclass(frozen=True)
class SealedFile:
    """What a file was when it was written.

    Attributes:
        size: in bytes.
        frame: checksum of what lies outside the regions.
        regions: in the order of their places.
    """

    size: int
    frame: str
    regions: tuple[Region, ...] = ()


def write_seal(folder: Path, files: Mapping[str, SealedFile]) -> None:
    """Write ``checksums.json``; names are relative to the folder."""
    entries = {name: asdict(file) for name, file in sorted(files.items())}
    (folder / SEAL).write_text(_encode(_FORMAT, entries), encoding="utf-8")


def read_seal(folder: Path) -> dict[str, SealedFile] | None:
    """What ``write_seal`` wrote; ``None`` when there is no seal.

    Raises:
        WeightsError: it is of a later version.
        DamagedError: it is damaged.
    """
    file = folder / SEAL
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        # The list has a checksum too, or a flipped bit in it would be reported as damage of a good file. Its text is
        # compared, not its content: writing is deterministic, so any other text is damage.
        if text != _encode(content["format"], content["files"]):
            raise ValueError("it does not have the checksum that it names")
        if content["format"] != _FORMAT:
            raise WeightsError(
                f"{file}: found format {content['format']}, this version reads {_FORMAT}; upgrade archon-core, or "
                "delete the file to load without checking"
            )
        # Names are joined to the folder below; one with a path would have any file of the system read.
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
        raise DamagedError(f"{file}: found no readable list of checksums ({error}); it is damaged") from error


def seal_whole(path: Path) -> SealedFile:
    """The entry of a small file."""
    content = path.read_bytes()
    return SealedFile(len(content), frame_checksum([content]))


def frame_checksum(pieces: Iterable[bytes | memoryview]) -> str:
    """The checksum of a frame: its pieces in the order of their places, without the regions between them."""
    checksum = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        checksum.update(piece)
    return checksum.hexdigest()


def check_size(path: Path, sealed: SealedFile) -> None:
    """Raises DamagedError when the file is not there, or is shorter or longer than it was."""
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    size = path.stat().st_size
    if size != sealed.size:
        raise _damaged(path, f"found {size} bytes, {sealed.size} were written")


def map_bytes(path: Path, size: int) -> Tensor:
    """The bytes of a file, uint8 [size], read when they are looked at."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    # A mapping: pages are read as they are summed, and a file larger than memory can be checked.
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def check_region(path: Path, region: Region, found: str) -> None:
    """Raises DamagedError when ``found`` is another checksum than the region had."""
    if found != region.checksum:
        raise _damaged(path, f"bytes {region.start} to {region.start + region.size} are not those that were written")


def check_frame(path: Path, sealed: SealedFile) -> None:
    """Raises DamagedError when something outside the regions was changed."""
    with path.open("rb") as file:
        if frame_checksum(_frame_of(file, sealed)) != sealed.frame:
            raise _damaged(path, "bytes between its tensors are not those that were written")


def check_file(path: Path, sealed: SealedFile) -> None:
    """Read a whole file.

    Raises:
        DamagedError: it is not as it was written.
    """
    check_size(path, sealed)
    content = map_bytes(path, sealed.size)
    for region in sealed.regions:
        check_region(path, region, checksum_of(content[region.start : region.start + region.size]))
    check_frame(path, sealed)


def check_share(folder: Path, ranks: Ranks) -> bool:
    """Check this rank's share of a folder's sealed files; false when the folder has no seal.

    Raises:
        DamagedError: on this rank alone, a file of its share is not as it was written.
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
        f"{path}: it is damaged: {what} (by {SEAL} beside it); copy it anew, or use another checkpoint; when it was "
        f"changed on purpose, delete {SEAL}"
    )
