"""Checksums as fast as memory: one pass of additions instead of a byte-wise polynomial.

Bytes are summed as 64-bit words within pages of 32 KiB, modulo 2^64; a hash covers the sums, and the bytes after the
last whole page. Flipped bits, zeros in place of data, and stale or misplaced pages change the result, except in one
case of 2^64. Words that swap places within one page go undetected. With vectorised sums it reads 25 to 50 GB/s on one
core, where CRC-32 reads 6 and SHA-256 2 (docs/performance.md).

This module defines the format, and sums in plain Python. Whoever has torch or numpy passes sums that are faster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

PAGE = 2**15
"""Bytes that one sum covers."""

PageSums = Callable[[Any], bytes]
"""Sums of whole pages: one little-endian 64-bit number per page."""


class PageHash:
    """The checksum of a sequence of bytes. Every ``update`` but the last must pass whole pages only."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def update(self, sums: Any, rest: Any = b"") -> None:
        """Add pages by their sums, and the bytes after the last whole page.

        Args:
            sums: little-endian 64-bit sums of whole pages, as a buffer.
            rest: bytes after the last whole page; only in the last call.
        """
        self._hash.update(sums)
        self._hash.update(rest)

    def text(self) -> str:
        """The result, in hexadecimal digits."""
        return self._hash.hexdigest()


def sum_pages(pages: Any) -> bytes:
    """``PageSums`` in plain Python, for bytes-like objects: about 300 MB/s."""
    words = memoryview(pages).cast("B").cast("Q")
    n = PAGE // 8
    sums = (sum(words[start : start + n]) & (2**64 - 1) for start in range(0, len(words), n))
    return b"".join(one.to_bytes(8, "little") for one in sums)


def checksum_of_bytes(content: Any, sums: PageSums = sum_pages) -> str:
    """The checksum of a bytes-like object."""
    view = memoryview(content).cast("B")
    whole = len(view) // PAGE * PAGE
    digest = PageHash()
    digest.update(sums(view[:whole]) if whole else b"", view[whole:])
    return digest.text()
