"""The parts in which a CPU attends with masks (``archon_engine.nn.attention_backends.sdpa``): a mask has few rows, and
only the keys that some of them see.

Attention with sinks has masks, and so have windows that hide keys, and samples that share the tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from archon_core.models.anatomy import AttentionAnatomy
from archon_plan.setting import Tokens

MASKED_QUERIES = 1024
"""``archon_engine.nn.attention_backends.sdpa``'s most rows of a mask."""


class MaskedPart(NamedTuple):
    """Queries at one place of equally long sequences, which share a mask.

    Attributes:
        sequences: their number, over the tokens of a micro-batch.
        rows: queries of each.
        keys: from the first to the last that they see.
        ends: whether its sequences have no further part.
    """

    sequences: float
    rows: int
    keys: int
    ends: bool

    @property
    def pairs(self) -> int:
        """Elements of the mask."""
        return self.rows * self.keys


def masked_parts(attention: AttentionAnatomy, tokens: Tokens) -> tuple[MaskedPart, ...]:
    """The parts of a micro-batch in their order; none if a causal kernel needs no mask. All samples but the first of
    each prompt are attended together, and so are the first ones."""
    window, whole = attention.window, min(tokens.sequence, tokens.per_micro_batch)
    prompt, samples = (0, 1.0) if tokens.shared is None else (tokens.shared.tokens, tokens.shared.samples)
    of_prompt = 1 / (prompt + samples * (whole - prompt))
    has_window = window is not None and window < whole
    parts: list[MaskedPart] = []
    if has_window or attention.sinks:
        parts += _parts_of(of_prompt, whole, whole, window)
    if samples > 1:
        parts += _parts_of(of_prompt * (samples - 1), whole - prompt, whole, window)
    return tuple(parts)


def _parts_of(sequences: float, queries: int, keys: int, window: int | None) -> Iterator[MaskedPart]:
    for first in range(0, queries, MASKED_QUERIES):
        rows = min(MASKED_QUERIES, queries - first)
        end = keys - queries + first + rows
        yield MaskedPart(sequences, rows, end - max(0, end - rows - (window or keys) + 1), first + rows == queries)
