"""The dense Qwen decoder, Qwen2 and Qwen3 in one: pre-norm blocks of grouped-query attention and SwiGLU.

Everything except the blocks also serves models with other blocks.

Legend: T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, OutputName, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.grouped_attention import GroupedQueryAttention
from archon_engine.nn.head import LanguageModelHead, ValueHead
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RotaryEmbedding, Rotation
from archon_engine.nn.swiglu import SwiGLU
from archon_models_qwen.arguments import QwenArguments


def make_norm(arguments: QwenArguments, size: int) -> RMSNorm:
    """A norm over ``size`` features. Norms whose weights start at 0 round after scaling, as in transformers."""
    a = arguments
    return RMSNorm(size, a.norm_eps, offset=a.norm_offset, rounds_first=a.norm_offset == 0.0)


def make_attention(arguments: QwenArguments, layer: int) -> GroupedQueryAttention:
    """The softmax attention of a layer."""
    a = arguments
    return GroupedQueryAttention(
        layer,
        AttentionSettings(scale=a.head_dim**-0.5, window=a.windows[layer]),
        hidden_size=a.hidden_size,
        n_heads=a.n_heads,
        n_kv_heads=a.n_kv_heads,
        head_dim=a.head_dim,
        bias=a.qkv_bias,
        output_bias=a.output_bias,
        output_gate=a.output_gate,
        head_norm=partial(make_norm, a) if a.qk_norm else None,
    )


class QwenBlock(nn.Module):
    """One decoder layer."""

    def __init__(self, arguments: QwenArguments, layer: int) -> None:
        super().__init__()
        a = arguments
        self.attention = make_attention(a, layer)
        self.mlp = SwiGLU(a.hidden_size, a.intermediate_size, a.hidden_act)
        self.attention_norm = make_norm(a, a.hidden_size)
        self.mlp_norm = make_norm(a, a.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), rotation, packed)
        return x + self.mlp(self.mlp_norm(x))


class QwenDecoder(nn.Module):
    """A dense Qwen, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Args:
        arguments: its sizes and options.
        stage: which part of it; ``None`` for all.
        make_block: the layer of a number; ``None`` makes a ``QwenBlock``.

    Attributes:
        embed: token embedding; ``None`` on stages without it.
        layers: the stage's layers by their number in the whole model.
        norm: final norm; ``None`` on stages without a head.
        head: language-model or value head; ``None`` on stages without it.
    """

    def __init__(
        self,
        arguments: QwenArguments,
        stage: Stage | None = None,
        make_block: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        a = arguments
        stage = stage or Stage.whole(a.n_layers)
        make_block = make_block or partial(QwenBlock, a)
        self.arguments = a
        self.embed = Embedding(a.vocab_size, a.hidden_size) if stage.has_embed else None
        self.layers = nn.ModuleDict({str(layer): make_block(layer) for layer in stage.layers})
        self.norm = make_norm(a, a.hidden_size) if stage.has_head else None
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
