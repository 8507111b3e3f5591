"""Qwen3-MoE: the dense decoder with blocks of experts in some layers or all. Who builds these comes from outside.

Legend: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import Rotation
from archon_models_qwen.decoder import QwenBlock, QwenDecoder, make_attention
from archon_models_qwen.moe_arguments import QwenMoEArguments


class QwenMoEBlock(nn.Module):
    """One decoder layer with experts."""

    def __init__(self, arguments: QwenMoEArguments, layer: int, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        self.attention = make_attention(a, layer)
        self.moe = builder.build(a.moe, layer)
        self.attention_norm = RMSNorm(a.hidden_size, a.norm_eps)
        self.mlp_norm = RMSNorm(a.hidden_size, a.norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), rotation, packed)
        return x + self.moe(self.mlp_norm(x), packed)


class QwenMoEDecoder(QwenDecoder):
    """A Qwen3-MoE, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Args:
        arguments: its sizes and options.
        stage: which part of it; ``None`` for all.
        builder: makes the blocks of experts.
    """

    def __init__(self, arguments: QwenMoEArguments, stage: Stage | None, builder: MoEBuilder) -> None:
        def make_block(layer: int) -> nn.Module:
            return QwenMoEBlock(arguments, layer, builder) if arguments.sparse[layer] else QwenBlock(arguments, layer)

        super().__init__(arguments, stage, make_block)
