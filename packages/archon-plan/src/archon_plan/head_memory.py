"""Memory of the final norm and the head, which computes log-probabilities in chunks of tokens.

It follows ``archon_engine.nn.head``: a chunk's logits exist as the product in the compute type and as fp32 values. They
stay only if, on a CPU, they are the only chunk.

Legend: P positions with outputs, V rows of the vocabulary on this rank, H hidden size, C tokens of a chunk.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple

from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.layer_operations import norm
from archon_plan.liveness import INPUT, backward_peak, saved_by_autograd

CHUNK_BYTES, GPU_CHUNK_BYTES = 64 * 2**20, 2**30
"""``archon_engine.nn.head``'s sizes of one [C, V] buffer in fp32, on a CPU and on other devices."""


POSITION_BYTES = 8 + 2 * FP32 + 2
"""Per position in backward: the target's row, two gradients, and two masks."""


class HeadUsage(NamedTuple):
    """Memory of the final norm and the head for one micro-batch, in bytes.

    Attributes:
        kept: from forward to backward.
        peak: while they run backward, the gradient of the head's weight included.
        forward: peak of the forward pass.
    """

    kept: float
    peak: float
    forward: float


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
    saved = sum(saved_by_autograd(final, sizes.input_bytes).values())
    in_norm = backward_peak(final, sizes.input_bytes)
    if critic:
        kept = saved + sizes.input_bytes
        return HeadUsage(kept, max(kept + sizes.input_bytes, in_norm), kept + sizes.input_bytes)
    rows = sizes.region_tokens
    positions = ceil(rows * scored)
    # Hidden states of all tensor ranks, which are the norm's result without tensor ranks; the log-normaliser.
    kept = saved + positions * (H * b + FP32)
    chunk = _chunk(positions, vocabulary, on_cpu=sizes.on_cpu)
    fp32, product = chunk * vocabulary * FP32, chunk * vocabulary * b if b < FP32 else 0.0
    stays = sizes.on_cpu and sizes.tensor_ranks == 1 and chunk == positions
    if stays:
        kept += fp32
    matrix = vocabulary * H
    # A chunk's product is made and widened, and its gradients are narrowed again. Then the product for the hidden
    # states' gradient and that for the weight's, and at the end its cast, exist beside the narrow gradients.
    products = (product or fp32) + max(chunk * H * b, matrix * b if b < FP32 else 0.0)
    gradients = positions * (H * b + POSITION_BYTES) + matrix * FP32
    forward = kept + max(fp32 + product, 2 * fp32) - (fp32 if stays else 0.0)
    peak = kept + max(fp32 + product, products) + gradients
    return HeadUsage(kept, max(peak, in_norm + matrix * b), forward)


def _chunk(positions: int, vocabulary: int, *, on_cpu: bool) -> int:
    """C."""
    rows = max(1, (CHUNK_BYTES if on_cpu else GPU_CHUNK_BYTES) // (vocabulary * FP32))
    return ceil(positions / max(1, ceil(positions / rows)))
