"""The gpt-oss decoder (arXiv:2508.10925): attention with sinks, a window in every other layer, and experts in all.

Legend: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import AttentionSettings, OutputName, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.grouped_attention import GroupedQueryAttention
from archon_engine.nn.head import LanguageModelHead, ValueHead
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RotaryEmbedding, Rotation
from archon_models_gpt_oss.arguments import GptOssArguments


class GptOssBlock(nn.Module):
    """One decoder layer."""

    def __init__(self, arguments: GptOssArguments, layer: int, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        self.attention = GroupedQueryAttention(
            layer,
            AttentionSettings(scale=a.head_dim**-0.5, window=a.windows[layer], sinks=True),
            hidden_size=a.hidden_size,
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            head_dim=a.head_dim,
            bias=a.attention_bias,
            output_bias=a.attention_bias,
        )
        self.moe = builder.build(a.moe, layer)
        self.attention_norm = RMSNorm(a.hidden_size, a.norm_eps)
        self.mlp_norm = RMSNorm(a.hidden_size, a.norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), rotation, packed)
        return x + self.moe(self.mlp_norm(x), packed)


class GptOssDecoder(nn.Module):
    """A gpt-oss, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Args:
        arguments: sizes and options.
        stage: the pipeline stage to build; ``None`` for the whole model.
        builder: builds the expert blocks.

    Attributes:
        embed: token embedding; ``None`` on stages without it.
        layers: the stage's layers by their number in the whole model.
        norm: final norm; ``None`` on stages without a head.
        head: language-model or value head; ``None`` on stages without it.
    """

    def __init__(self, arguments: GptOssArguments, stage: Stage | None, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        stage = stage or Stage.whole(a.n_layers)
        self.embed = Embedding(a.vocab_size, a.hidden_size) if stage.has_embed else None
        self.layers = nn.ModuleDict({str(layer): GptOssBlock(a, layer, builder) for layer in stage.layers})
        self.norm = RMSNorm(a.hidden_size, a.norm_eps) if stage.has_head else None
        self.head: LanguageModelHead | ValueHead | None = None
        if stage.has_head:
            self.head = ValueHead(a.hidden_size) if a.critic else LanguageModelHead(a.hidden_size, a.vocab_size)
        if a.tied and self.embed is not None and self.head is not None:
            self.head.weight = self.embed.weight
        self.rotary = RotaryEmbedding(a.rope)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[OutputName, Tensor]:
        """Token ids [T] on the first stage, hidden states [T, hidden] after it, to the outputs of ``packed.head`` on
        the last stage, hidden states before it."""
        if self.embed is not None:
            x = self.embed(x)
        rotation = self.rotary(packed, x.dtype)
        for layer in self.layers.values():
            x = layer(x, rotation, packed)
        if self.norm is None or self.head is None:
            return x
        assert packed.head is not None, "the last stage's forward needs packed.head"
        return self.head(self.norm(x), packed.head)
