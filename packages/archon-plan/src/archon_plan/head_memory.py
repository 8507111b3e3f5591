"""Memory of the final norm and the head, which computes log-probabilities in chunks of tokens.

It follows ``archon_engine.nn.head``: no logits stay, and a chunk's logits exist as the product in the compute type and
as fp32 values.

Legend: P positions with outputs, V rows of the vocabulary on this rank, H hidden size, C tokens of a chunk.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple

from archon_plan.block_operations import norm
from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.liveness import INPUT, saved_by_autograd

CHUNK_BYTES, GPU_CHUNK_BYTES = 64 * 2**20, 2**30
"""``archon_engine.nn.head``'s sizes of one [C, V] buffer in fp32, on a CPU and on other devices."""


POSITION_BYTES = 8 + 2 * FP32 + 2
"""Per position in backward: the target's row, two gradients, and two masks."""


class HeadUsage(NamedTuple):
    """Memory of the final norm and the head for one micro-batch, in bytes.

    Attributes:
        kept: from forward to backward.
        logits: chunks of logits and their gradients, at the peak of the backward pass.
        gradients: of the hidden states, and of the head's weight in fp32, at that peak.
        forward: peak of the forward pass.
    """

    kept: float
    logits: float
    gradients: float
    forward: float

    @property
    def peak(self) -> float:
        """The peak of the backward pass."""
        return self.kept + self.logits + self.gradients


@lru_cache(maxsize=256)
def head_usage(sizes: BlockSizes, vocabulary: int, scored: float, *, critic: bool) -> HeadUsage:
    """Memory of the head on a rank.

    Args:
        sizes: of a block of the model, eager.
        vocabulary: V.
        scored: share of the positions with an output.
        critic: whether the head gives one value per token.
    """
    b, H = sizes.value_bytes, sizes.hidden
    final = tuple(norm("norm", INPUT, sizes.tokens, H, sizes))
    normed = sizes.input_bytes
    kept = sum(saved_by_autograd(final, sizes.input_bytes).values())
    if critic:
        return HeadUsage(kept + normed, 0.0, normed, kept + 2 * normed)
    rows = sizes.region_tokens
    hidden = rows * H * b
    positions = ceil(rows * scored)
    taken = positions * H * b if scored < 1 else 0.0
    # Hidden states of all tensor ranks, or the norm's result itself; the log-normaliser of every position.
    kept += taken or max(hidden, normed)
    kept += positions * FP32
    chunk, several = _chunk(positions, vocabulary, on_cpu=sizes.on_cpu)
    fp32, product = chunk * vocabulary * FP32, chunk * vocabulary * b if b < FP32 else 0.0
    matrix = vocabulary * H
    # While the next chunk's product is made and widened, the last chunk's values are still referenced. Later the
    # product for the hidden states' gradient, that for the weight's, and at the end its cast exist beside one chunk.
    chunks = (2 if several else 1) * (fp32 + product)
    casts = fp32 + product + max(chunk * H * b, matrix * b if b < FP32 else 0.0)
    gradients = positions * (H * b + POSITION_BYTES) + matrix * FP32
    forward = kept + max((2 if several else 1) * fp32 + product, 2 * fp32)
    return HeadUsage(kept, max(chunks, casts), gradients, forward)


def _chunk(positions: int, vocabulary: int, *, on_cpu: bool) -> tuple[int, bool]:
    """C, and whether there is more than one chunk."""
    rows = max(1, (CHUNK_BYTES if on_cpu else GPU_CHUNK_BYTES) // (vocabulary * FP32))
    n_chunks = max(1, ceil(positions / rows))
    return ceil(positions / n_chunks), n_chunks > 1
