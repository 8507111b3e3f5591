"""Distributed checkpoints on disk: torch's format, written without copies, sealed, and read through mapped memory.

Every rank writes one file; the first rank also writes ``.metadata`` and the seal. A reading rank checks its share of
the files: tensors that it needs whole while it copies them, everything else in a separate pass.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from archon_core.ranks.ranks import Ranks
from archon_core.receiving.checksum import (
    Checksum,
    blocks,
    bytes_of,
    checksum_of,
)
from archon_engine.checkpoint.data_file import Archive, DataFile
from archon_engine.checkpoint.seal import (
    Region,
    SealedFile,
    check_frame,
    check_region,
    check_size,
    map_bytes,
    seal_whole,
    write_seal,
)
from archon_engine.compat import storage_info

METADATA = ".metadata"

READERS = 2
"""Number of reading threads: the kernel copies for one while the other computes the checksum of its block."""


@dataclass(frozen=True)
class _Written:
    """A rank's report to the first rank about a tensor that it wrote, and about the file that holds it."""

    file: str
    archive: Archive
    sealed: SealedFile


class TensorWriter(dcp.FileSystemWriter):
    """torch's ``StorageWriter`` for a folder, with data files of ``DataFile`` and a seal.

    Args:
        folder: where to write.
        others: names of small files that are already in the folder, to seal as well.
    """

    def __init__(self, folder: Path, others: Iterable[str] = ()) -> None:
        # No sync: publish_folder flushes the folder to disk.
        super().__init__(folder, sync_files=False)
        self._folder = folder
        self._others = tuple(others)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors, one at a time."""
        written: list[tuple[Any, Archive]] = []
        name = f"{plan.storage_data.prefix}0.distcp"
        if plan.items:
            with DataFile(self._folder / name) as file:
                for item in plan.items:
                    values = planner.resolve_data(item)
                    assert isinstance(values, Tensor), f"{item.index}: only tensors are saved"
                    written.append((item.index, file.append(values.detach().cpu())))
                    del values  # it may be a temporary copy; free it before the next one is made
            sealed = file.sealed()
        future: Future[list[WriteResult]] = Future()
        future.set_result(
            [WriteResult(index, archive.size, _Written(name, archive, sealed)) for index, archive in written]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write ``.metadata`` and the seal. torch calls this on the first rank."""
        files = {result.storage_data.file: result.storage_data.sealed for part in results for result in part}
        for part in results:
            for place, result in enumerate(part):
                found: _Written = result.storage_data
                info = storage_info(found.file, found.archive.start, found.archive.size)
                part[place] = WriteResult(result.index, result.size_in_bytes, info)
        super().finish(metadata, results)
        files |= {name: seal_whole(self._folder / name) for name in (METADATA, *self._others)}
        write_seal(self._folder, files)


class DescribedReader(dcp.FileSystemReader):
    """torch's ``StorageReader`` for a folder whose description ``dcp_metadata.read_metadata`` has read.

    The base class would unpickle ``.metadata``, or ``__0.metadata`` in its absence. It reads the tensors themselves
    with ``torch.load(weights_only=True)``, and the description contains no other objects.

    Args:
        folder: the folder to read.
        metadata: its description.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description."""
        return self._metadata


class TensorReader(DescribedReader):
    """torch's ``StorageReader`` for a folder that ``TensorWriter`` wrote.

    Args:
        folder: the folder to read.
        metadata: its description.
        seal: its seal.
        ranks: the ranks that read it together.
    """

    def __init__(self, folder: Path, metadata: Metadata, seal: Mapping[str, SealedFile], ranks: Ranks) -> None:
        super().__init__(folder, metadata)
        self._folder = folder
        self._ranks = ranks
        self._files = {name: sealed for name, sealed in seal.items() if sealed.regions}
        self._own = set(sorted(self._files)[ranks.rank :: ranks.size])
        self._shapes: dict[MetadataIndex, torch.Size] = {}

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Record the shapes of the stored parts. torch calls this before ``read_data``."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        for name, saved in metadata.state_dict_metadata.items():
            chunks: list[ChunkStorageMetadata] = getattr(saved, "chunks", [])
            self._shapes |= {MetadataIndex(name, chunk.offsets): chunk.sizes for chunk in chunks}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of the plan, and check this rank's share of the files.

        Raises:
            DamagedError: a file is damaged.
        """
        wanted: dict[str, dict[int, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            info = self.storage_data[item.storage_index]
            wanted[info.relative_path][info.offset].append(item)
        for name in sorted({*wanted, *self._own}):
            self._read_file(name, wanted.get(name, {}), planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_file(self, name: str, wanted: Mapping[int, list[ReadItem]], planner: LoadPlanner) -> None:
        path, sealed, is_own = self._folder / name, self._files[name], name in self._own
        check_size(path, sealed)
        if is_own:
            check_frame(path, sealed)
        content = map_bytes(path, sealed.size)
        starts = [region.start for region in sealed.regions]
        # The tensor of an archive is the first region after the start of the archive.
        requests = {starts[bisect_left(starts, archive)]: items for archive, items in wanted.items()}

        def read(region: Region) -> None:
            targets = [(item, planner.resolve_tensor(item).detach()) for item in requests.get(region.start, [])]
            if is_own and len(targets) == 1 and self._is_whole(*targets[0]):
                check_region(path, region, _read_checked(file, region.start, bytes_of(targets[0][1])))
            else:
                values = content[region.start : region.start + region.size]
                if is_own:
                    check_region(path, region, checksum_of(values))
                for item, target in targets:
                    target.copy_(self._part(values, item, target.dtype))
            for item, target in targets:
                planner.commit_tensor(item, target)

        regions = [region for region in sealed.regions if is_own or region.start in requests]
        with path.open("rb", buffering=0) as opened, ThreadPoolExecutor(READERS) as pool:
            file = opened.fileno()
            for _ in pool.map(read, regions):  # raises the error of a thread
                pass

    def _is_whole(self, item: ReadItem, target: Tensor) -> bool:
        """Whether the bytes of the stored tensor go into ``target`` unchanged and in order."""
        return item.lengths == self._shapes[item.storage_index] and target.is_cpu and target.is_contiguous()

    def _part(self, values: Tensor, item: ReadItem, dtype: torch.dtype) -> Tensor:
        part = values.view(dtype).view(self._shapes[item.storage_index])
        for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            part = part.narrow(dim, start, length)
        return part


def _read_checked(file: int, start: int, target: Tensor) -> str:
    """Fill ``target``, uint8 [n], from an open file, and return its checksum."""
    checksum = Checksum()
    for block in blocks(target):
        # Faster than copying from mapped memory, which would fault in every page.
        place, end = block.numpy().data, block.numel()
        filled = 0
        while filled < end:
            count = os.preadv(file, [place[filled:]], start + filled)
            assert count, "the file became shorter while it was read"
            filled += count
        start += end
        checksum.update(block)
    return checksum.text()
