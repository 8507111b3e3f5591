"""Seeds for every random draw, derived from (run seed, purpose, coordinates).

No generator state is carried from step to step, so a run continues with the same draws on another layout,
world size or after a restart.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *coordinates: int | str) -> int:
    """A 63-bit seed that depends on all its arguments and on nothing else.

    Args:
        seed: the run's seed.
        purpose: what is drawn, such as ``"init"`` or ``"rollout"``.
        coordinates: what tells one draw from another: a step and a sample number, a parameter's name.
    """
    key = "\x1f".join([str(seed), purpose, *(str(c) for c in coordinates)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
