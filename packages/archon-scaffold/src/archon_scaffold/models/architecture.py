"""What a decoder of the Llama line is made of, as far as packages can be written for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Place = Literal["arguments", "attention", "feed-forward", "layer", "decoder", "weights"]
"""Which part of the written package a gap belongs to."""

NormPlace = Literal["attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm"]
"""Before attention, behind it, before the feed-forward block, behind that: by the names that our modules have."""


@dataclass(frozen=True)
class Gap:
    """Something that ``transformers``' model does and the written package does not.

    Attributes:
        place: where it is missing.
        text: what it is, and how it was noticed.
    """

    place: Place
    text: str


@dataclass(frozen=True)
class NormForm:
    """How a norm computes; see ``archon_engine.nn.norm``.

    Attributes:
        kind: which class.
        offset: added to the weight of an RMS norm.
        rounds_first: whether an RMS norm rounds before it scales.
        bias: whether a LayerNorm has one.
    """

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    rounds_first: bool = True
    bias: bool = False

    @property
    def options(self) -> str:
        """Keyword arguments that make it: ``offset=1.0, rounds_first=False``."""
        if self.kind == "layer":
            return "" if self.bias else "bias=False"
        parts = [f"offset={self.offset}"] if self.offset else []
        return ", ".join([*parts, *([] if self.rounds_first else ["rounds_first=False"])])


@dataclass(frozen=True)
class Experts:
    """Blocks of experts in place of feed-forward blocks, in every layer; see ``archon_core.contracts.moe.MoESettings``.

    Attributes:
        number: the configuration's entry for how many there are.
        per_token: likewise, for how many a token goes to.
        size: likewise, for their intermediate size.
        normalise: whether the chosen ones' scores are divided by their sum, as an expression of ``config``.
        router: name of the router's weight in files, behind the layer's.
        projections: names of gate, up and down projection in files, likewise, with ``{expert}``.
    """

    number: str
    per_token: str
    size: str
    normalise: str
    router: str
    projections: tuple[str, str, str]


@dataclass(frozen=True)
class Architecture:
    """A decoder.

    Attributes:
        model_type: of its Hugging Face configurations.
        causal_class: ``transformers``' class for it.
        critic: whether it also exists with a value head.
        root: prefix of Hugging Face's weight names, such as ``model.``.
        norm: the norms of the residual stream.
        norms: which of them each layer has -> Hugging Face's name.
        norm_eps: the configuration's entry for their epsilon.
        final_norm: Hugging Face's name of the last norm.
        qkv_bias: biases on query, key and value projections.
        output_bias: a bias on the attention's output projection.
        fused_qkv: Hugging Face's name of the three projections in one; empty where they are apart.
        qk_norm: queries and keys are normalised head by head, or each projection as a whole; ``None`` for not at all.
        qk_norm_form: how.
        mlp: gate, up and down projection, with ``fused`` the first two in one; or up and down alone (``plain``).
        mlp_bias: biases on all of them.
        mlp_names: Hugging Face's names of up (or gate and up fused) and down projection.
        experts: what stands in place of all that; ``None`` for dense layers.
        activation: the configuration's entry for it.
        scale: what attention's scores are multiplied by, as an expression of ``config`` and ``head_dim``.
        windows: per layer by ``layer_types``, the same for all layers, or none anywhere.
        attention_softcap: whether scores are capped.
        logit_softcap: whether logits are.
        embedding_scale: expression of ``config``; empty for none.
        residual_scale: likewise, of what blocks add to the residual stream.
        logit_scale: likewise, of logits.
        dropouts: the configuration's entries for dropout.
        fixed: entries that decide the form, and the values that the package is written for.
        tiny: a configuration for tests.
        gaps: what the package does not do.
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
    qk_norm: Literal["head", "projection"] | None = None
    qk_norm_form: NormForm = NormForm()
    mlp: Literal["gated", "fused", "plain"] = "gated"
    mlp_bias: bool = False
    mlp_names: tuple[str, str] = ("up_proj", "down_proj")
    experts: Experts | None = None
    activation: str = "hidden_act"
    scale: str = "head_dim**-0.5"
    windows: Literal["layer_types", "all"] | None = None
    attention_softcap: bool = False
    logit_softcap: bool = False
    embedding_scale: str = ""
    residual_scale: str = ""
    logit_scale: str = ""
    dropouts: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()

    def gaps_at(self, *places: Place) -> tuple[Gap, ...]:
        """The gaps of these places."""
        return tuple(gap for gap in self.gaps if gap.place in places)

    def with_gaps(self, *gaps: Gap) -> Architecture:
        """The same with further gaps."""
        return replace(self, gaps=(*self.gaps, *gaps))
