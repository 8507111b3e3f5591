"""Checksums of tensors, in the format of ``archon_core.serving.checksum``, with sums that torch vectorises."""

from __future__ import annotations

import torch
from torch import Tensor

from archon_core.serving.checksum import PAGE, PageHash

BLOCK = 2**20
"""Bytes that are summed at a time: few enough to stay in the processor's cache for the next write or copy."""


class Checksum:
    """The checksum of a sequence of bytes. Every ``update`` but the last must pass whole pages."""

    def __init__(self) -> None:
        self._hash = PageHash()

    def update(self, content: Tensor) -> None:
        """Add bytes, uint8 [n]. On another device than the CPU, only their sums are copied to the host."""
        if content.storage_offset() % 8:
            content = content.clone()  # only aligned bytes can be viewed as words
        whole = content.numel() // PAGE * PAGE
        if whole:
            sums = content[:whole].view(torch.int64).view(-1, PAGE // 8).sum(1)
            self._hash.update(sums.cpu().numpy().data)
        if whole < content.numel():
            self._hash.update(b"", content[whole:].cpu().numpy().data)

    def text(self) -> str:
        """The result, in hexadecimal digits."""
        return self._hash.text()


def blocks(content: Tensor) -> tuple[Tensor, ...]:
    """Split bytes, uint8 [n], into consecutive parts of ``BLOCK``; the last may be shorter."""
    return content.split(BLOCK) if content.numel() else ()


def checksum_of(content: Tensor) -> str:
    """The checksum of bytes, uint8 [n]."""
    checksum = Checksum()
    for block in blocks(content):
        checksum.update(block)
    return checksum.text()


def bytes_of(values: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, uint8 [n], sharing its storage."""
    return values.detach().reshape(-1).view(torch.uint8)
