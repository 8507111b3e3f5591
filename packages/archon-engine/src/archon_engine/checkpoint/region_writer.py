"""Writing tensors into a file, with a checksum of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from torch import Tensor

from archon_engine.checkpoint.checksum import checksum_of
from archon_engine.checkpoint.seal import Region


class RegionWriter:
    """Adds up checksums in a second thread while the kernel copies: both take about as long as memory needs.

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
