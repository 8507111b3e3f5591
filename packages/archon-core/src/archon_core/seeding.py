"""Seeds for every random draw, derived from (run seed, purpose, coordinates).

No generator state is carried from step to step, so a run has the same draws on another layout or world size, and after
a restart.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *coordinates: int | str) -> int:
    """A 63-bit seed that depends only on the arguments.

    Args:
        seed: the run's seed.
        purpose: purpose of the draw, such as ``"init"`` or ``"rollout"``.
        coordinates: values that identify the draw, such as step and sample number, or a parameter's name.
    """
    key = "\x1f".join([str(seed), purpose, *(str(c) for c in coordinates)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
