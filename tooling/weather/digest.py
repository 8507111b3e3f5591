"""One number for all weights of a version, so that servers and trainer can compare theirs bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from archon_core.receiving.checksum import bytes_of


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes, in the order of names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(bytes_of(weights[name].cpu().contiguous()).numpy())
    return found.hexdigest()
