"""FlexAttention, whose kernels are compiled anew for every type and window: after what takes less time."""

from __future__ import annotations

from collections.abc import Iterator

from gpu.numerics.attention import of_backend
from gpu.records import Check, Context


def checks(context: Context) -> Iterator[Check]:
    """As of the other backends, and on packs with other masks in bf16 alone."""
    yield from of_backend(context, "flex")
    for suffix in ("-last", "-tree", "-part"):
        yield from of_backend(context, "flex", suffix, ("bf16",))
