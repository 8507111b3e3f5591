"""``Architecture``: the features of Llama-like decoders that packages can be generated for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Place = Literal["arguments", "attention", "feed-forward", "layer", "decoder", "weights"]
"""The part of the generated package that a gap belongs to."""

NormPlace = Literal["attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm", "input_norm"]
"""Norms before and after attention, before and after the feed-forward block, or one before both in parallel, by the
names of our modules."""


@dataclass(frozen=True)
class Gap:
    """A feature of ``transformers``' model that the generated package lacks.

    Attributes:
        place: the part that lacks it.
        text: description, and how it was found.
    """

    place: Place
    text: str


@dataclass(frozen=True)
class NormForm:
    """The formula of a norm; see ``archon_engine.nn.norm``.

    Attributes:
        kind: the class.
        offset: added to the weight of an RMS norm.
        rounds_first: whether an RMS norm rounds before it scales.
        bias: whether a LayerNorm has a bias.
    """

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    rounds_first: bool = True
    bias: bool = False

    @property
    def options(self) -> str:
        """Keyword arguments, such as ``offset=1.0, rounds_first=False``."""
        if self.kind == "layer":
            return "" if self.bias else "bias=False"
        parts = [f"offset={self.offset}"] if self.offset else []
        return ", ".join([*parts, *([] if self.rounds_first else ["rounds_first=False"])])


@dataclass(frozen=True)
class Experts:
    """Expert blocks instead of feed-forward blocks, in some layers or all (``archon_core.contracts.moe.MoESettings``).

    Attributes:
        number: name of the configuration's entry with the number of experts.
        per_token: name of the entry with the number of experts per token.
        size: name of the entry with the experts' intermediate size.
        normalise: whether the chosen scores are divided by their sum, as an expression of ``config``.
        router: name of the router's weight in files, relative to the layer.
        projections: names of gate, up and down projection in files, relative to the layer, with ``{expert}``.
        sparse: whether a layer has experts, as an expression of ``config`` and ``layer``; empty if all have.
        score: function of router logits.
        scaling: factor on the experts' weights, as an expression of ``config``; empty for none.
        grouped: whether experts are chosen within groups (``n_group``, ``topk_group``).
        choice_bias: Hugging Face's name of the bias for choosing experts, relative to the layer; empty for none.
        shared: Hugging Face's name of the shared expert, relative to the layer; empty for none.
        shared_size: its intermediate size, as an expression of ``config``.
        shared_gate: Hugging Face's name of its gate, relative to the layer; empty for none.
        clamped: whether routers and experts have biases, and experts clamp their projections, as in gpt-oss. Their
            weights are stacked in files too, so there are no names of single ones.
    """

    number: str
    per_token: str
    size: str
    normalise: str
    router: str
    projections: tuple[str, str, str]
    sparse: str = ""
    score: Literal["softmax", "sigmoid"] = "softmax"
    scaling: str = ""
    grouped: bool = False
    choice_bias: str = ""
    shared: str = ""
    shared_size: str = ""
    shared_gate: str = ""
    clamped: bool = False

    @property
    def expressions(self) -> str:
        """All expressions of ``config``."""
        clamp = "config.swiglu_alpha config.swiglu_limit" if self.clamped else ""
        return " ".join((self.sparse, self.scaling, self.shared_size, self.normalise, clamp))


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (``archon_engine.nn.latent_attention``), under DeepSeek's names.

    Attributes:
        low_rank_queries: whether queries, too, come from a low-rank vector.
        bias: biases on the down projections and on the output projection.
        norm_eps: epsilon of the norms of low-rank vectors, as an expression of ``a``, the arguments.
        interleaved: whether rotation pairs neighbouring elements, as an expression of ``config``.
    """

    low_rank_queries: bool
    bias: bool = False
    norm_eps: str = "a.norm_eps"
    interleaved: str = "False"

    @property
    def names(self) -> dict[str, str]:
        """Hugging Face's names of attention's modules -> ours."""
        low_rank = {"q_a_proj": "q_a_proj", "q_a_layernorm": "q_a_norm", "q_b_proj": "q_b_proj"}
        keys_values = {"kv_a_proj_with_mqa": "kv_a_proj", "kv_a_layernorm": "kv_a_norm", "kv_b_proj": "kv_b_proj"}
        return (low_rank if self.low_rank_queries else {"q_proj": "q_proj"}) | keys_values | {"o_proj": "o_proj"}

    @property
    def biased(self) -> tuple[str, ...]:
        """Hugging Face's names of the modules with biases."""
        names = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
        return tuple(name for name in names if name in self.names) if self.bias else ()


@dataclass(frozen=True)
class Architecture:
    """A decoder.

    Attributes:
        model_type: of its Hugging Face configurations.
        causal_class: ``transformers``' class for it.
        critic: whether it also exists with a value head.
        root: prefix of Hugging Face's weight names, such as ``model.``.
        norm: the norms of the residual stream.
        norms: norms of each layer -> Hugging Face's names.
        norm_eps: name of the configuration's entry with their epsilon.
        final_norm: Hugging Face's name of the final norm.
        qkv_bias: biases on query, key and value projections.
        output_bias: a bias on the attention's output projection.
        fused_qkv: Hugging Face's name of the fused query, key and value projection; empty if they are separate.
        sinks: whether heads have attention sinks.
        latent: multi-head latent attention instead of these projections; ``None`` for none.
        qk_norm: normalisation of queries and keys per head, or per projection; ``None`` for none.
        qk_norm_form: its formula.
        qk_norm_names: Hugging Face's names of the norms of queries and keys.
        qk_norm_rotated: whether it comes after the rotation.
        mlp: gate, up and down projection, with ``fused`` the first two in one; or up and down alone (``plain``).
        mlp_bias: biases on all of them.
        mlp_names: Hugging Face's names of up (or gate and up fused) and down projection.
        experts: expert blocks instead of feed-forward blocks; ``None`` for a model without experts.
        activation: name of the configuration's entry with the activation.
        rotates: whether a layer rotates queries and keys, as an expression of ``config`` and ``layer``; empty if
            all do.
        rope_by_layer_type: whether each layer type has its own rotary parameters.
        rope_interleaved: whether rotation pairs neighbouring elements of a head.
        rope_partial: whether a part of the head is rotated.
        scale: factor on attention scores, as an expression of ``config`` and ``head_dim``.
        windows: attention windows per layer (``layer_types``), equal for all layers (``all``), or none.
        attention_softcap: whether attention scores are soft-capped.
        logit_softcap: whether logits are soft-capped.
        embedding_scale: factor on embeddings, as an expression of ``config``; empty for none.
        residual_scale: factor on the blocks' additions to the residual stream, likewise.
        logit_scale: factor on logits, likewise.
        dropouts: names of the configuration's dropout entries.
        fixed: structural entries and the values that the package supports.
        tiny: a test configuration.
        gaps: missing features.
    """

    model_type: str
    causal_class: str
    critic: bool
    tiny: Mapping[str, Any]
    fixed: Mapping[str, Any]
    norms: Mapping[NormPlace, str]
    root: str = "model."
    norm: NormForm = NormForm()
    norm_eps: str = "rms_norm_eps"
    final_norm: str = "norm"
    qkv_bias: bool = False
    output_bias: bool = False
    fused_qkv: str = ""
    sinks: bool = False
    latent: Latent | None = None
    qk_norm: Literal["head", "projection"] | None = None
    qk_norm_form: NormForm = NormForm()
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm")
    qk_norm_rotated: bool = False
    mlp: Literal["gated", "fused", "plain"] = "gated"
    mlp_bias: bool = False
    mlp_names: tuple[str, str] = ("up_proj", "down_proj")
    experts: Experts | None = None
    activation: str = "hidden_act"
    rotates: str = ""
    rope_by_layer_type: bool = False
    rope_interleaved: bool = False
    rope_partial: bool = False
    scale: str = "head_dim**-0.5"
    windows: Literal["layer_types", "all"] | None = None
    attention_softcap: bool = False
    logit_softcap: bool = False
    embedding_scale: str = ""
    residual_scale: str = ""
    logit_scale: str = ""
    dropouts: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def dense(self) -> bool:
        """Whether layers may have a dense feed-forward block."""
        return self.experts is None or bool(self.experts.sparse)

    @property
    def parallel(self) -> bool:
        """Whether attention and feed-forward block read the same input, and their outputs are added together."""
        return "input_norm" in self.norms

    @property
    def rotates_alike(self) -> bool:
        """Whether all layers rotate queries and keys in the same way."""
        return not self.rotates and not self.rope_by_layer_type

    def gaps_at(self, *places: Place) -> tuple[Gap, ...]:
        """The gaps of these places."""
        return tuple(gap for gap in self.gaps if gap.place in places)

    def with_gaps(self, *gaps: Gap) -> Architecture:
        """The architecture with additional gaps."""
        return replace(self, gaps=(*self.gaps, *gaps))
