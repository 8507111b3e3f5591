"""Checksums: a change anywhere changes them; sums in pages agree with arithmetic by hand."""

from __future__ import annotations

import hashlib
import random

from archon_core.serving.checksum import PAGE, checksum_of_bytes, sum_pages

CONTENT = random.Random(1).randbytes(2 * PAGE + 100)


def test_a_page_sum_is_the_sum_of_its_words_modulo_2_to_the_64():
    page = (2**64 - 1).to_bytes(8, "little") + (3).to_bytes(8, "little") + bytes(PAGE - 16)
    assert sum_pages(page + bytes(PAGE)) == (2).to_bytes(8, "little") + bytes(8)


def test_a_checksum_hashes_page_sums_and_then_the_rest():
    hashed = hashlib.blake2b(sum_pages(CONTENT[: 2 * PAGE]) + CONTENT[2 * PAGE :], digest_size=8)
    assert checksum_of_bytes(CONTENT) == hashed.hexdigest()


def test_one_flipped_bit_anywhere_changes_the_checksum():
    whole = checksum_of_bytes(CONTENT)
    for position in (0, 7, PAGE - 1, PAGE, 2 * PAGE, len(CONTENT) - 1):
        for bit in (0, 7):
            changed = bytearray(CONTENT)
            changed[position] ^= 1 << bit
            assert checksum_of_bytes(changed) != whole


def test_swapped_pages_and_missing_ends_change_the_checksum():
    swapped = CONTENT[PAGE : 2 * PAGE] + CONTENT[:PAGE] + CONTENT[2 * PAGE :]
    assert len({checksum_of_bytes(c) for c in (CONTENT, swapped, CONTENT[:-1], CONTENT + b"\0", b"")}) == 5
