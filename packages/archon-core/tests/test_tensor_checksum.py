"""Checksums notice what disks do to files, and depend on the bytes alone."""

import pytest
import torch

from archon_core.receiving.checksum import (
    BLOCK,
    PAGE,
    Checksum,
    bytes_of,
    checksum_of,
)


def some_bytes(n, seed=0):
    return torch.randint(0, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [0, 1, 7, 8, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5, BLOCK + PAGE + 3])
def test_equal_bytes_have_equal_checksums_however_they_lie_in_memory(n):
    content = some_bytes(n)
    for offset in range(9):
        padded = torch.cat([torch.zeros(offset, dtype=torch.uint8), content])
        assert checksum_of(padded[offset:]) == checksum_of(content)
    whole_pages = Checksum()
    for page in content.split(PAGE) if n else ():
        whole_pages.update(page)
    assert whole_pages.text() == checksum_of(content)


def test_every_flipped_bit_shows():
    content = some_bytes(2 * PAGE + 100)
    expected = checksum_of(content)
    for place in (0, 1, 7, 8, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 99):
        for bit in range(8):
            content[place] ^= 1 << bit
            assert checksum_of(content) != expected, (place, bit)
            content[place] ^= 1 << bit
    assert checksum_of(content) == expected


def test_lost_swapped_and_repeated_pages_show():
    first, second, third = some_bytes(3 * PAGE).split(PAGE)
    expected = checksum_of(torch.cat([first, second, third]))
    for changed in (
        (second, first, third),
        (first, torch.zeros_like(second), third),
        (first, first, third),
        (first, second),
        (first, second, third, torch.zeros(8, dtype=torch.uint8)),
    ):
        assert checksum_of(torch.cat(changed)) != expected


def test_the_bytes_of_a_tensor_share_its_storage():
    for values in (torch.tensor(2.0), torch.ones(3, 5, dtype=torch.bfloat16), torch.arange(7)):
        content = bytes_of(values)
        assert (content.dtype, content.numel()) == (torch.uint8, values.nbytes)
        assert content.data_ptr() == values.data_ptr()
