"""Module, weight map and parallel plan of a Llama without biases and without tied weights. T packed tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from archon_core.contracts.packed import AttentionSettings
from archon_core.models.parallel_plan import HeadCounts, ParallelPlan
from archon_core.models.stage import Stage
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Rename
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.linear import Linear
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RopeArguments, RotaryEmbedding
from archon_engine.nn.swiglu import SwiGLU


@dataclass(frozen=True)
class LlamaArguments:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    norm_eps: float
    rope: RopeArguments

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @classmethod
    def from_hf_config(cls, config, *, critic: bool) -> LlamaArguments:
        assert not critic, "the spec does not declare critics"
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            n_layers=config.num_hidden_layers,
            norm_eps=config.rms_norm_eps,
            rope=RopeArguments.from_hf_config(config, config.hidden_size // config.num_attention_heads),
        )


class Attention(nn.Module):
    def __init__(self, a: LlamaArguments, layer: int) -> None:
        super().__init__()
        self.head_dim = a.head_dim
        self.q_proj = Linear(a.hidden_size, a.n_heads * a.head_dim, bias=False)
        self.k_proj = Linear(a.hidden_size, a.n_kv_heads * a.head_dim, bias=False)
        self.v_proj = Linear(a.hidden_size, a.n_kv_heads * a.head_dim, bias=False)
        self.o_proj = Linear(a.n_heads * a.head_dim, a.hidden_size, bias=False)
        self.core = PackedAttention(str(layer), AttentionSettings(scale=a.head_dim**-0.5))

    def forward(self, x, rotation, packed):
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.core(rotation.apply(q), rotation.apply(k), v, packed).flatten(-2))


class Block(nn.Module):
    def __init__(self, a: LlamaArguments, layer: int) -> None:
        super().__init__()
        self.attention = Attention(a, layer)
        self.mlp = SwiGLU(a.hidden_size, a.intermediate_size, "silu")
        self.attention_norm = RMSNorm(a.hidden_size, a.norm_eps)
        self.mlp_norm = RMSNorm(a.hidden_size, a.norm_eps)

    def forward(self, x, rotation, packed):
        x = x + self.attention(self.attention_norm(x), rotation, packed)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    def __init__(self, arguments: LlamaArguments, stage: Stage | None = None) -> None:
        super().__init__()
        a, stage = arguments, stage or Stage.whole(arguments.n_layers)
        self.arguments = a
        self.embed = Embedding(a.vocab_size, a.hidden_size) if stage.has_embed else None
        self.layers = nn.ModuleDict({str(layer): Block(a, layer) for layer in stage.layers})
        self.norm = RMSNorm(a.hidden_size, a.norm_eps) if stage.has_head else None
        self.head = LanguageModelHead(a.hidden_size, a.vocab_size) if stage.has_head else None
        self.rotary = RotaryEmbedding(a.rope)

    def forward(self, x, packed):
        """[T] token ids, or [T, hidden], to what the head is asked for, or [T, hidden]."""
        x = x if self.embed is None else self.embed(x)
        rotation = self.rotary(packed, x.dtype)
        for layer in self.layers.values():
            x = layer(x, rotation, packed)
        return x if self.head is None else self.head(self.norm(x), packed.head)


def weight_map(arguments: LlamaArguments) -> WeightMap:
    hf, ours = "model.layers.{layer}", "layers.{layer}"
    return WeightMap(
        (
            Rename("model.embed_tokens.weight", "embed.weight"),
            Rename(f"{hf}.self_attn.{{projection}}.weight", f"{ours}.attention.{{projection}}.weight"),
            Rename(f"{hf}.mlp.{{projection}}.weight", f"{ours}.mlp.{{projection}}.weight"),
            Rename(f"{hf}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
            Rename(f"{hf}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight"),
            Rename("model.norm.weight", "norm.weight"),
            Rename("lm_head.weight", "head.weight"),
        )
    )


def parallel_plan(arguments: LlamaArguments) -> ParallelPlan:
    return ParallelPlan(
        roles={
            "embed": "vocabulary",
            **{f"layers.{{layer}}.attention.{name}_proj": "column" for name in "qkv"},
            "layers.{layer}.attention.o_proj": "row",
            "layers.{layer}.mlp.gate_proj": "column",
            "layers.{layer}.mlp.up_proj": "column",
            "layers.{layer}.mlp.down_proj": "row",
            "layers.{layer}.attention_norm": "sequence",
            "layers.{layer}.mlp_norm": "sequence",
            "norm": "sequence",
            "head": "vocabulary",
        },
        tensor_regions=("layers.{layer}.attention", "layers.{layer}.mlp"),
        attention=("layers.{layer}.attention.core",),
        key_value=("layers.{layer}.attention.k_proj", "layers.{layer}.attention.v_proj"),
        heads=HeadCounts(query=arguments.n_heads, key_value=arguments.n_kv_heads),
    )
