"""The DeepSeek-V3 decoder: pre-norm blocks of latent attention, with experts in all but the first layers.

Legend: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import OutputName, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.head import LanguageModelHead, ValueHead
from archon_engine.nn.latent_attention import LatentAttention
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RotaryEmbedding, Rotation
from archon_engine.nn.swiglu import SwiGLU
from archon_models_deepseek.arguments import DeepseekArguments

LATENT_NORM_EPS = 1e-6
"""Of the norms inside attention, whatever ``rms_norm_eps`` is: transformers gives it only to the norms outside."""


class DeepseekBlock(nn.Module):
    """One decoder layer: attention, then experts or, in the first layers, a dense feed-forward block."""

    def __init__(self, arguments: DeepseekArguments, layer: int, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        self.attention = LatentAttention(
            a.attention, layer, scale=a.attention_scale, norm_eps=LATENT_NORM_EPS, bias=a.attention_bias
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


class DeepseekDecoder(nn.Module):
    """The model, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

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

    def __init__(self, arguments: DeepseekArguments, stage: Stage | None, builder: MoEBuilder) -> None:
        super().__init__()
        a = arguments
        stage = stage or Stage.whole(a.n_layers)
        self.embed = Embedding(a.vocab_size, a.hidden_size) if stage.has_embed else None
        self.layers = nn.ModuleDict({str(layer): DeepseekBlock(a, layer, builder) for layer in stage.layers})
        self.norm = RMSNorm(a.hidden_size, a.norm_eps) if stage.has_head else None
        self.head: nn.Module | None = None
        if stage.has_head:
            self.head = ValueHead(a.hidden_size) if a.critic else LanguageModelHead(a.hidden_size, a.vocab_size)
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
