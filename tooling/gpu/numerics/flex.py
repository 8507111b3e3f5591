"""FlexAttention, whose kernels are compiled anew for every type and window, which takes seconds each."""

from __future__ import annotations

from collections.abc import Iterator

from gpu.numerics.attention import of_backend
from gpu.records import Check, Context


def checks(context: Context) -> Iterator[Check]:
    """As of the other backends, and on packs with other masks in bf16 alone; what models need most comes first."""
    for suffix in ("", "-tree", "-last", "-part"):
        yield from of_backend(context, "flex", suffix, ("bf16",))
    yield from of_backend(context, "flex", "", ("fp32",))
