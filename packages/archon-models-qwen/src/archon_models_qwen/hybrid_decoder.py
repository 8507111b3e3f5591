"""Qwen3.5: layers with Gated DeltaNet and, usually every fourth, layers with gated attention; dense or with experts.

Legend: T packed tokens.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.gated_delta_net import GatedDeltaNet
from archon_engine.nn.rotary import Rotation
from archon_engine.nn.swiglu import SwiGLU
from archon_models_qwen.decoder import QwenDecoder, make_attention, make_norm
from archon_models_qwen.hybrid_arguments import Qwen35Arguments, Qwen35MoEArguments


class Qwen35Block(nn.Module):
    """One decoder layer.

    Attributes:
        attention: gated attention; ``None`` in layers with Gated DeltaNet.
        delta: Gated DeltaNet; ``None`` in layers with attention.
    """

    def __init__(self, arguments: Qwen35Arguments, layer: int) -> None:
        super().__init__()
        a = arguments
        self.attention = None if a.linear[layer] else make_attention(a, layer)
        self.delta = GatedDeltaNet(a.delta, layer) if a.linear[layer] else None
        self.mlp = SwiGLU(a.hidden_size, a.intermediate_size, a.hidden_act)
        self.attention_norm = make_norm(a, a.hidden_size)
        self.mlp_norm = make_norm(a, a.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + mixed(self, self.attention_norm(x), rotation, packed)
        return x + self.mlp(self.mlp_norm(x))


class Qwen35MoEBlock(nn.Module):
    """One decoder layer with experts; attributes as in ``Qwen35Block``."""

    def __init__(self, arguments: Qwen35MoEArguments, layer: int, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        self.attention = None if a.linear[layer] else make_attention(a, layer)
        self.delta = GatedDeltaNet(a.delta, layer) if a.linear[layer] else None
        self.moe = builder.build(a.moe, layer)
        self.attention_norm = make_norm(a, a.hidden_size)
        self.mlp_norm = make_norm(a, a.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + mixed(self, self.attention_norm(x), rotation, packed)
        return x + self.moe(self.mlp_norm(x), packed)


def mixed(block: Qwen35Block | Qwen35MoEBlock, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
    """The result of the block's token mixer, [T, hidden]."""
    if block.attention is not None:
        return block.attention(x, rotation, packed)
    assert block.delta is not None, "a layer has one of the two"
    return block.delta(x, packed)


class Qwen35Decoder(QwenDecoder):
    """A dense Qwen3.5, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Args:
        arguments: its sizes and options.
        stage: which part of it; ``None`` for all.
    """

    def __init__(self, arguments: Qwen35Arguments, stage: Stage | None = None) -> None:
        super().__init__(arguments, stage, partial(Qwen35Block, arguments))


class Qwen35MoEDecoder(QwenDecoder):
    """A Qwen3.5 with experts, or one pipeline stage of it.

    Args:
        arguments: its sizes and options.
        stage: which part of it; ``None`` for all.
        builder: makes the blocks of experts.
    """

    def __init__(self, arguments: Qwen35MoEArguments, stage: Stage | None, builder: MoEBuilder) -> None:
        super().__init__(arguments, stage, lambda layer: Qwen35MoEBlock(arguments, layer, builder))
