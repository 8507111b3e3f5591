"""The GLM-4 decoder with experts: pre-norm blocks of grouped-query attention, with experts in all but the first layers.

Legend: T packed tokens.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import AttentionSettings, OutputName, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.grouped_attention import GroupedQueryAttention
from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RotaryEmbedding, Rotation
from archon_engine.nn.swiglu import SwiGLU
from archon_models_glm.arguments import GlmArguments


class GlmBlock(nn.Module):
    """One decoder layer: attention, then experts or, in the first layers, a dense feed-forward block."""

    def __init__(self, arguments: GlmArguments, layer: int, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        self.attention = GroupedQueryAttention(
            layer,
            AttentionSettings(scale=a.head_dim**-0.5),
            hidden_size=a.hidden_size,
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            head_dim=a.head_dim,
            bias=a.qkv_bias,
            head_norm=partial(RMSNorm, eps=a.norm_eps) if a.qk_norm else None,
        )
        self.has_experts = layer >= a.n_dense_layers
        if self.has_experts:
            self.moe = builder.build(a.moe, layer)
        else:
            self.mlp = SwiGLU(a.hidden_size, a.intermediate_size, a.hidden_act)
        self.attention_norm = RMSNorm(a.hidden_size, a.norm_eps)
        self.mlp_norm = RMSNorm(a.hidden_size, a.norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), rotation, packed)
        y = self.mlp_norm(x)
        return x + (self.moe(y, packed) if self.has_experts else self.mlp(y))


class GlmDecoder(nn.Module):
    """The model, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Args:
        arguments: sizes and options.
        stage: the pipeline stage to build; ``None`` for the whole model.
        builder: builds the expert blocks.

    Attributes:
        embed: token embedding; ``None`` on stages without it.
        layers: the stage's layers by their number in the whole model.
        norm: final norm; ``None`` on stages without a head.
        head: language-model head; ``None`` on stages without it.
    """

    def __init__(self, arguments: GlmArguments, stage: Stage | None, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        stage = stage or Stage.whole(a.n_layers)
        self.embed = Embedding(a.vocab_size, a.hidden_size) if stage.has_embed else None
        self.layers = nn.ModuleDict({str(layer): GlmBlock(a, layer, builder) for layer in stage.layers})
        self.norm = RMSNorm(a.hidden_size, a.norm_eps) if stage.has_head else None
        self.head = LanguageModelHead(a.hidden_size, a.vocab_size) if stage.has_head else None
        if a.tied and self.embed is not None and self.head is not None:
            self.head.weight = self.embed.weight
        self.rotary = RotaryEmbedding(a.rope)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[OutputName, Tensor]:
        """Maps token ids [T] (first stage) or hidden states [T, hidden] to hidden states, or on the last stage to the
        outputs that ``packed.head`` requests."""
        if self.embed is not None:
            x = self.embed(x)
        rotation = self.rotary(packed, x.dtype)
        for layer in self.layers.values():
            x = layer(x, rotation, packed)
        if self.norm is None or self.head is None:
            return x
        assert packed.head is not None, "the last stage's forward needs packed.head"
        return self.head(self.norm(x), packed.head)
