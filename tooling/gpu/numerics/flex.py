"""FlexAttention, whose kernels are compiled anew for every type and window: after what takes less time."""

from __future__ import annotations

from collections.abc import Iterator

from gpu.numerics.attention import of_backend
from gpu.records import Check, Context


def checks(context: Context) -> Iterator[Check]:
    """As of the other backends."""
    yield from of_backend(context, "flex")
