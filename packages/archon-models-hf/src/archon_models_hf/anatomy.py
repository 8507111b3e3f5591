"""The anatomy of families that transformers implements, read from the entries of a ``config.json``. Imports neither
torch nor transformers.

A family is a row of ``FAMILIES``: how it differs from a Llama. Absent entries have the defaults of transformers'
configuration classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from archon_core.errors import ModelError
from archon_core.models.anatomy import AttentionAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.decoder_anatomy import Entries, decoder, gated_mlp, linear, norm
from archon_core.models.parallel_plan import HeadCounts

BEFORE = ("input_layernorm", "post_attention_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
AROUND = (*BEFORE, "pre_feedforward_layernorm", "post_feedforward_layernorm")


Windows = Literal["none", "all", "most", "late", "unrotated"]
"""The layers with a sliding window: none, all, all but every Nth, layers from ``max_window_layers`` on, or layers
without rotation. The last three can be given layer by layer in ``layer_types``."""


@dataclass(frozen=True)
class Family:
    """The weights of a family of decoders.

    Attributes:
        norms: of the residual stream, in each layer.
        key_heads: number of key heads where the entry is absent; ``None`` for as many as query heads.
        head_dim: size of a head where the entry is absent; ``None`` for equal parts of the hidden size.
        biases: biases of attention's projections: none; all, if ``attention_bias`` is set; or those of queries, keys
            and values.
        mlp_bias: whether ``mlp_bias`` gives biases to the feed-forward block.
        head_norms: what of queries and keys is normalised: nothing, each head, or all heads of a token together.
        fused: whether queries, keys and values come from one projection, and gate and up-projection from another.
        tied: whether head and embedding are tied where the entry is absent.
        windows: the layers with a sliding window.
        window: its size where the entry is absent.
        whole_every: N, with windows in most layers.
    """

    norms: tuple[str, ...] = BEFORE
    key_heads: int | None = None
    head_dim: int | None = None
    biases: Literal["none", "entry", "inputs"] = "entry"
    mlp_bias: bool = False
    head_norms: Literal["none", "head", "token"] = "none"
    fused: bool = False
    tied: bool = False
    windows: Windows = "none"
    window: int | None = None
    whole_every: int = 0


FAMILIES: Mapping[str, Family] = {
    "llama": Family(mlp_bias=True),
    "granite": Family(mlp_bias=True),
    "mistral": Family(key_heads=8, biases="none", windows="all", window=4096),
    "phi3": Family(biases="none", fused=True, windows="all"),
    "gemma": Family(key_heads=16, head_dim=256, tied=True),
    "gemma2": Family(AROUND, 4, 256, tied=True, windows="most", window=4096, whole_every=2),
    "gemma3_text": Family(AROUND, 4, 256, head_norms="head", tied=True, windows="most", window=4096, whole_every=6),
    "olmo2": Family(AFTER, head_norms="token"),
    "olmo3": Family(AFTER, head_norms="token", windows="most", window=4096, whole_every=4),
    "smollm3": Family(key_heads=4, mlp_bias=True, tied=True, windows="unrotated"),
    "qwen2": Family(key_heads=32, biases="inputs", windows="late", window=4096),
    "qwen3": Family(key_heads=32, head_dim=128, head_norms="head", windows="late", window=4096),
}
"""``model_type`` -> family."""


def anatomy(entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of the model that a ``config.json`` describes, by the names of ``HfDecoder``.

    Raises:
        ModelError: the family is not described, or an entry that its size depends on is not a positive integer.
    """
    read = Entries(entries)
    family = FAMILIES.get(read.model_type)
    if family is None:
        raise ModelError(
            f"anatomy of model_type {read.model_type!r}: found no description of this family; archon-models-hf "
            f"describes {', '.join(sorted(FAMILIES))}; plan one of them, or a model of another package (archon models)"
        )
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    # Null, as against absent, means as many as query heads.
    key_heads = read.get("num_key_value_heads", family.key_heads)
    sizes = _Sizes(
        family=family,
        hidden=hidden,
        heads=HeadCounts(heads, heads if key_heads is None else read.size("num_key_value_heads", family.key_heads)),
        head_dim=read.size("head_dim", family.head_dim or hidden // heads),
        inner=read.size("intermediate_size"),
        has_bias=family.biases == "entry" and read.flag("attention_bias"),
        has_mlp_bias=family.mlp_bias and read.flag("mlp_bias"),
    )
    weights = tuple(_weights(sizes))
    layers = tuple(
        _layer(sizes, weights, _window(read, family, number)) for number in range(read.size("num_hidden_layers"))
    )
    tied = read.flag("tie_word_embeddings", family.tied)
    return decoder(hidden, read.size("vocab_size"), layers, tied=tied, critic=critic)


@dataclass(frozen=True)
class _Sizes:
    family: Family
    hidden: int
    heads: HeadCounts
    head_dim: int
    inner: int
    has_bias: bool
    has_mlp_bias: bool


def _layer(sizes: _Sizes, weights: tuple[WeightShape, ...], window: int | None) -> LayerAnatomy:
    return LayerAnatomy(
        weights=weights,
        attention=AttentionAnatomy(
            heads=sizes.heads,
            head_dim=sizes.head_dim,
            value_dim=sizes.head_dim,
            window=window,
            head_norms=sizes.family.head_norms != "none",
            sends_queries=False,  # transformers' attention projects all before it calls ours
        ),
        intermediate_size=sizes.inner,
        norms=len(sizes.family.norms),
    )


def _weights(s: _Sizes) -> Iterator[WeightShape]:
    queries, keys = s.heads.query * s.head_dim, s.heads.key_value * s.head_dim
    if s.family.fused:
        yield from linear("self_attn.qkv_proj", queries + 2 * keys, s.hidden, "column")
        yield from linear("mlp.gate_up_proj", 2 * s.inner, s.hidden, "column")
        yield from linear("mlp.down_proj", s.hidden, s.inner, "row")
    else:
        inputs = s.has_bias or s.family.biases == "inputs"
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"self_attn.{name}", outputs, s.hidden, "column", bias=inputs)
        yield from gated_mlp("mlp", s.hidden, s.inner, bias=s.has_mlp_bias)
    yield from linear("self_attn.o_proj", s.hidden, queries, "row", bias=s.has_bias)
    if s.family.head_norms != "none":
        by_head = s.family.head_norms == "head"
        yield norm("self_attn.q_norm", s.head_dim if by_head else queries, "head_norm")
        yield norm("self_attn.k_norm", s.head_dim if by_head else keys, "head_norm")
    for name in s.family.norms:
        yield norm(name, s.hidden)


def _window(read: Entries, family: Family, layer: int) -> int | None:
    if family.windows == "none":
        return None
    if family.windows in ("late", "unrotated") and not read.flag("use_sliding_window"):
        return None
    size = read.optional_size("sliding_window", family.window)
    if size is None or family.windows == "all":
        return size
    kinds = read.get("layer_types")
    if kinds:
        has_window = kinds[layer] == "sliding_attention"
    elif family.windows == "late":
        has_window = layer >= read.size("max_window_layers", 28)
    elif family.windows == "unrotated":
        rotated = read.get("no_rope_layers")  # 1 for layers with rotation, despite the name
        every = read.size("no_rope_layer_interval", 4)
        has_window = not rotated[layer] if rotated else (layer + 1) % every == 0
    else:
        has_window = (layer + 1) % read.size("sliding_window_pattern", family.whole_every) != 0
    return size if has_window else None
