"""The work of one micro-batch on one rank: multiplications and additions, bytes read and written, operations launched.

A product of T rows with a matrix of n elements takes 2 T n FLOPs; its backward pass as many for the gradient of the
input and as many for that of the weight. Causal attention computes the pairs of a query and the keys that it sees:
two products forward, and five backward, one of which recomputes the scores (FlashAttention-2, arXiv:2307.08691, section
4). The head computes its logits again in backward; on a CPU only if they are several chunks, which plans ignore.

Bytes of norms, activations, rotations and sums count reads and writes of the engine's layers, operation by operation,
or once per block if it is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.models.anatomy import AttentionAnatomy
from archon_core.models.stage import Stage
from archon_plan.block_sizes import CHUNK
from archon_plan.setting import Setting, Tokens
from archon_plan.shared_prompts import path_keys
from archon_plan.sizes import LayerSizes, sizes_of

_ATTENTION_BACKWARD = 2.5
_PRODUCTS_BACKWARD = 2.0
"""Of products whose both factors have gradients."""

_DELTA_PASSES = 30
"""Reads and writes of a feature between the projections of Gated DeltaNet, counted in its layers."""

_ENDS_OPERATIONS = 30
"""Operations of embedding, or of norm, head and loss, in one direction."""


_WRAPPED_OPERATIONS = 45
"""Operations that take the host as long as the wrapping of one weight in a DTensor, which tensor ranks need, and the
unwrapping in both directions: measured on a CPU, 170 us where an operation takes 3.8 us."""


@dataclass(frozen=True)
class Work:
    """Work of one pass on one rank.

    Attributes:
        dense: FLOPs of matrix products of weights.
        router: FLOPs of routers, in fp32.
        grouped: FLOPs of products of experts.
        attention: FLOPs of core attention.
        head: FLOPs of the head.
        memory: bytes of operations that only read and write.
        operations: number of operations.
    """

    dense: float = 0.0
    router: float = 0.0
    grouped: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    memory: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.dense + other.dense,
            self.router + other.router,
            self.grouped + other.grouped,
            self.attention + other.attention,
            self.head + other.head,
            self.memory + other.memory,
            self.operations + other.operations,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(
            self.dense * factor,
            self.router * factor,
            self.grouped * factor,
            self.attention * factor,
            self.head * factor,
            self.memory * factor,
            self.operations * factor,
        )

    @property
    def flops(self) -> float:
        """All multiplications and additions."""
        return self.dense + self.router + self.grouped + self.attention + self.head


NO_WORK = Work()


@dataclass(frozen=True)
class Passes:
    """Work of one unit and one micro-batch.

    Attributes:
        forward: the forward pass.
        recompute: what backward computes again before it begins.
        backward_input: gradients of the inputs.
        backward_weight: gradients of the weights.
        split_weight: what gradients of the weights compute again if they are a pass by themselves.
    """

    forward: Work = NO_WORK
    recompute: Work = NO_WORK
    backward_input: Work = NO_WORK
    backward_weight: Work = NO_WORK
    split_weight: Work = NO_WORK


def stage_work(setting: Setting, stage: Stage) -> tuple[tuple[int, Passes], ...]:
    """The work of a stage for one micro-batch on one rank: number and mean work of equal units, in the order of the
    forward pass."""
    sizes = sizes_of(setting.anatomy)
    layers = setting.layers_of(stage)
    work = [(1, embedding_passes(setting))] if stage.has_embed else []
    for kind in sorted({kind for kind, _ in layers}):
        count = layers[kind, True] + layers[kind, False]
        work.append((count, layer_passes(setting, sizes.kinds[kind], layers[kind, True] / count)))
    return (*work, *([(1, head_passes(setting, sizes.head))] if stage.has_head else []))


def mean_keys(attention: AttentionAnatomy, sequence: float) -> float:
    """Keys that a token sees, its own included, on average over a sequence of that many tokens."""
    window = attention.window
    if window is None or window >= sequence:
        return (sequence + 1) / 2
    # The first tokens of a sequence see fewer than the window.
    return (window * (window + 1) / 2 + (sequence - window) * window) / sequence


def keys_of(attention: AttentionAnatomy, tokens: Tokens) -> float:
    """``mean_keys`` over the tokens of a micro-batch, whose sequences may share a prompt."""
    if tokens.shared is None:
        return mean_keys(attention, tokens.sequence)
    prompt, samples = tokens.shared.tokens, tokens.shared.samples
    of_prompt = prompt * mean_keys(attention, prompt)
    of_completion = tokens.sequence * mean_keys(attention, tokens.sequence) - of_prompt
    return (of_prompt + samples * of_completion) / (prompt + samples * (tokens.sequence - prompt))


def delta_flops(attention: AttentionAnatomy, sequence: float, tp: int = 1) -> float:
    """FLOPs of Gated DeltaNet's rule for a token of a sequence of that many tokens, forward, on one of ``tp`` ranks.

    Counted are products of keys and of queries with the keys of a chunk, the mixing of values, the triangular system,
    whose other half is zero, and the state: read for corrections and for outputs, and written.
    """
    key, value, chunk = attention.head_dim, attention.value_dim, min(CHUNK, sequence)
    of_chunk = chunk * (2 * 2 * key + 2 * value + key + value)
    return attention.heads.query / tp * (of_chunk + 3 * 2 * key * value)


def layer_passes(setting: Setting, sizes: LayerSizes, recomputed: float) -> Passes:
    """Mean work of equal layers, of which a share is recomputed as a whole."""
    dims, tokens = setting.dims, setting.tokens
    layer, attention = sizes.anatomy, sizes.anatomy.attention
    local = tokens.per_micro_batch / (dims.tp * dims.cp)
    pairs = local * layer.experts.top_k if layer.experts else 0.0
    heads = attention.heads.query / (dims.tp * dims.cp)
    # Fused kernels take heads of one size (``archon_engine.nn.attention_backends``).
    size = attention.head_dim + max(attention.head_dim, attention.value_dim)
    scores = tokens.per_micro_batch * keys_of(attention, tokens) * heads
    met = sizes.products + (dims.tp - 1) * sizes.repeated
    products = Work(dense=2 * local * met, router=2 * local * sizes.router, grouped=2 * pairs * sizes.pair)
    traffic = local * _layer_bytes(setting, sizes)
    launched = _layer_operations(setting, sizes)
    # A compiled block has no wrappers inside.
    wrapped = 0 if setting.compiles or dims.tp == 1 else _WRAPPED_OPERATIONS * len(layer.weights)
    others = Work(memory=traffic, operations=launched)
    core, core_backward = Work(attention=2 * scores * size), _ATTENTION_BACKWARD
    if attention.delta is not None:
        of_rule = local * dims.tp * delta_flops(attention, tokens.sequence, dims.tp)
        core, core_backward = Work(attention=of_rule), _PRODUCTS_BACKWARD
    forward = products + core + others
    recompute = forward * recomputed
    if not setting.compiles:
        # torch's checkpoints stop after the last tensor that backward needs, and it does not need the last product. A
        # shared expert is last unless it is computed while tokens travel to their experts (``archon_moe.block``).
        is_last = layer.experts is None or dims.ep * dims.etp == 1
        recompute += Work(dense=-2 * local * sizes.last_product * recomputed * is_last)
    if setting.trains and setting.checkpointing == "selective" and setting.every is None:
        recompute = others
    elif setting.trains and setting.checkpointing == "memory_budget":
        # An upper bound: the compiler first drops what is cheap to compute for the memory that it takes.
        recompute = forward * (1 - setting.budget)
    return Passes(
        forward,
        recompute,
        # Backward of a norm or an activation reads and writes about twice as much.
        products + core * core_backward + Work(memory=2 * traffic, operations=launched),
        # Only products have weights, so these gradients launch about half as many operations.
        products + Work(operations=launched / 2 + wrapped),
        # Experts begin both halves with the gradient behind their last matrix, one of three.
        Work(grouped=products.grouped / 3),
    )


def _layer_bytes(setting: Setting, sizes: LayerSizes) -> float:
    """Bytes read and written by the operations between products, per token of this rank, in the forward pass."""
    layer, attention = sizes.anatomy, sizes.anatomy.attention
    number, hidden = setting.types.compute, setting.anatomy.hidden_size
    fused = setting.compiles
    # An RMSNorm reads and writes the residual stream in 16 bits and in fp32 (archon_engine.nn.norm).
    norm = 2 * number if fused else (36 if number == 2 else 28)
    rotated = 0 if attention.delta else (attention.heads.query + attention.heads.key_value) * attention.head_dim
    total = hidden * (layer.norms * norm + 2 * 3 * number)
    total += rotated * (norm * attention.head_norms + (2 if fused else 12) * number)
    # Keys and values of paths are copied.
    keys = attention.heads.key_value * (attention.head_dim + attention.value_dim)
    total += 2 * number * path_keys(setting.tokens) * keys
    if attention.delta is not None:
        # Convolution, chunks, and the gated norm of outputs, mostly in fp32 (``archon_engine.nn.delta_rule``).
        heads = attention.heads
        total += (2 * heads.key_value * attention.head_dim + heads.query * attention.value_dim) * 4 * _DELTA_PASSES
    if attention.latent is not None:
        # Every tensor rank normalises the low-rank vectors of all tokens.
        total += setting.dims.tp * norm * (attention.latent.query_rank + attention.latent.key_value_rank)
    width = layer.intermediate_size
    if layer.experts:
        width += layer.experts.shared_intermediate_size
        # Rows are gathered, weighted and summed in fp32 (archon_moe.dispatch, archon_moe.kernels.grouped_mm).
        total += layer.experts.top_k * (5 * number * layer.experts.intermediate_size + 4 * number * hidden)
        total += 12 * hidden
    return total + width * (3 if fused else 5) * number


def _layer_operations(setting: Setting, sizes: LayerSizes) -> float:
    """Operations of a layer's forward pass, counted in the engine's layers; a compiled block fuses those between
    products."""
    experts = 60 if sizes.anatomy.experts else 0
    return (15 if setting.compiles else 60) + experts


def embedding_passes(setting: Setting) -> Passes:
    """Work of the embedding, which copies rows."""
    local = setting.tokens.per_micro_batch / (setting.dims.tp * setting.dims.cp)
    moved = 2 * local * setting.anatomy.hidden_size * setting.types.compute
    copy = Work(memory=moved, operations=_ENDS_OPERATIONS)
    return Passes(forward=copy, backward_weight=copy if setting.trains else NO_WORK)


def head_passes(setting: Setting, elements: int) -> Passes:
    """Work of norm and head, whose matrix has that many elements. Chunks of logits are read and written in fp32
    (``archon_engine.nn.head``)."""
    dims, tokens, anatomy = setting.dims, setting.tokens, setting.anatomy
    number = setting.types.compute
    local = tokens.per_micro_batch / (dims.tp * dims.cp)
    norm = local * anatomy.hidden_size * (36 if number == 2 else 28)
    if anatomy.critic:
        product = Work(head=2 * local * elements, memory=norm, operations=_ENDS_OPERATIONS)
        return Passes(product, NO_WORK, product, Work(head=product.head))
    positions = tokens.scored * tokens.per_micro_batch / dims.cp
    rows = -(-anatomy.vocab_size // dims.tp)
    flops = 2 * positions * rows * anatomy.hidden_size
    logits = positions * rows
    forward = Work(head=flops, memory=norm + logits * (18 if number == 2 else 12), operations=_ENDS_OPERATIONS)
    recompute = Work(head=flops)
    inputs = Work(head=flops, memory=2 * norm + logits * (36 if number == 2 else 28), operations=2 * _ENDS_OPERATIONS)
    return Passes(forward, recompute, inputs, Work(head=flops))
