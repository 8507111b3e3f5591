"""Reads the blocks of a layer: norms and their placement, projections and biases, the feed-forward block.

Each function adds its findings about ``transformers``' small model to an ``Architecture``, and a ``Gap`` for every
unknown feature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from archon_scaffold.models.architecture import Architecture, Gap, NormForm, NormPlace
from archon_scaffold.models.experts import has_experts, read_experts
from archon_scaffold.models.latent import read_latent
from archon_scaffold.models.probes import norm_eps, norm_form, same
from archon_scaffold.models.tiny import head_dim_of
from archon_scaffold.models.twin import Twin

NORMS: tuple[dict[str, NormPlace], ...] = (
    {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    {"input_layernorm": "input_norm"},
    {"input_layernorm": "attention_norm", "pre_feedforward_layernorm": "mlp_norm"},
    {"attention_layernorm": "attention_norm", "feedforward_layernorm": "mlp_norm"},
    {"post_attention_layernorm": "attention_out_norm", "post_feedforward_layernorm": "mlp_out_norm"},
    {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_out_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
    {
        "input_layernorm": "attention_norm",
        "post_self_attn_layernorm": "attention_out_norm",
        "post_attention_layernorm": "mlp_norm",
        "post_mlp_layernorm": "mlp_out_norm",
    },
)
"""Known sets of norms in a layer and their placement: Llama, Cohere, VaultGemma, Apertus, OLMo 2, Gemma 2, GLM 4."""

QUERY_KEY_NORMS = (("q_norm", "k_norm"), ("query_layernorm", "key_layernorm"))
"""Names of the norms of queries and keys."""

EPS_ENTRIES = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")


def read_norms(found: Architecture, twin: Twin) -> Architecture:
    """Read the norms of a layer: placement, formula, and the entry with their epsilon."""
    layer, gaps = twin.layers[0], []
    own = {name: part for name, part in layer.named_children() if name not in ("self_attn", "mlp")}
    holding = {name: part for name, part in own.items() if any(True for _ in part.parameters())}
    places = next((known for known in NORMS if set(known) == set(holding)), None)
    if places is None:
        gaps.append(
            Gap(
                "layer",
                f"layers hold {', '.join(holding) or 'no norms'} beside attention and feed-forward block, which is no "
                "known placement of norms; written are norms before both, as in Llama",
            )
        )
        places = {name: place for name, place in NORMS[0].items() if name in holding}
    final = next((name for name in ("norm", "final_layernorm") if hasattr(twin.decoder, name)), "norm")
    modules = [*(holding[name] for name in places), getattr(twin.decoder, final, None)]
    forms = {norm_form(module) if hasattr(module, "weight") else None for module in modules}
    form = next(iter(forms)) if len(forms) == 1 else None
    if form is None:
        kinds = ", ".join(sorted({type(module).__name__ for module in modules}))
        gaps.append(Gap("layer", f"norms ({kinds}) compute neither an RMS norm nor a LayerNorm with weights"))
    eps = _eps_entry(twin, norm_eps(modules[-1]) if modules[-1] is not None else None)
    if eps is None:
        gaps.append(Gap("arguments", "no known entry of the configuration holds the norms' epsilon"))
    return replace(
        found,
        norms={place: name for name, place in places.items()},
        norm=form or NormForm(),
        norm_eps=eps or "rms_norm_eps",
        final_norm=final,
    ).with_gaps(*gaps)


def _eps_entry(twin: Twin, eps: float | None) -> str | None:
    return next((name for name in EPS_ENTRIES if getattr(twin.config, name, None) == eps and eps is not None), None)


def read_attention(found: Architecture, twin: Twin) -> Architecture:
    """Read the projections of attention and their biases."""
    own = {
        name.removeprefix("self_attn."): shape for name, shape in twin.names.items() if name.startswith("self_attn.")
    }
    if (latent := read_latent(twin)) is not None:
        return replace(found, latent=latent)
    gaps: list[Gap] = []
    fused = "qkv_proj" if "qkv_proj.weight" in own else ""
    inputs = (fused,) if fused else ("q_proj", "k_proj", "v_proj")
    known = {f"{name}.{kind}" for name in (*inputs, "o_proj") for kind in ("weight", "bias")}
    known |= {f"{name}.weight" for names in QUERY_KEY_NORMS for name in names}
    known |= {"sinks"}
    missing = [f"{name}.weight" for name in (*inputs, "o_proj") if f"{name}.weight" not in own]
    if missing or set(own) - known:
        others = ", ".join(sorted(set(own) - known))
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        holds = f"holds {others}" if others else ""
        gaps.append(Gap("attention", f"attention {' and '.join(filter(None, (lacks, holds)))}, other than Llama's"))
    biased = {f"{name}.bias" in own for name in inputs}
    if fused and True in biased:
        gaps.append(Gap("weights", f"{fused} has a bias, which no rule takes apart"))
    if len(biased) > 1:
        gaps.append(Gap("attention", "some of query, key and value projections have biases, and others none"))
    return replace(
        found,
        fused_qkv=fused,
        qkv_bias=True in biased,
        output_bias="o_proj.bias" in own,
        sinks="sinks" in own,
    ).with_gaps(*gaps)


def read_query_key_norms(found: Architecture, twin: Twin) -> Architecture:
    """Read the norms of queries and keys."""
    attention = twin.layers[0].self_attn
    names = next((pair for pair in QUERY_KEY_NORMS if getattr(attention, pair[0], None) is not None), None)
    if names is None:
        return found
    norms = [getattr(attention, name, None) for name in names]
    head_dim, config = head_dim_of(twin.config), twin.config
    sizes = [tuple(norm.weight.shape) if hasattr(norm, "weight") else None for norm in norms]
    whole = [(config.num_attention_heads * head_dim,), (config.num_key_value_heads * head_dim,)]
    forms = {norm_form(norm) if hasattr(norm, "weight") else None for norm in norms}
    form = next(iter(forms)) if len(forms) == 1 else None
    if form is None or form.kind != "rms" or sizes not in ([(head_dim,)] * 2, whole):
        kinds = ", ".join(type(norm).__name__ for norm in norms)
        return found.with_gaps(
            Gap("attention", f"queries and keys go through {kinds} of sizes {sizes}, not an RMS norm")
        )
    return replace(
        found,
        qk_norm="head" if sizes != whole else "projection",
        qk_norm_form=form,
        qk_norm_names=names,
        qk_norm_rotated=sizes != whole and _takes_rotated(twin, attention, norms[0]),
    )


def _takes_rotated(twin: Twin, attention: nn.Module, norm: nn.Module) -> bool:
    """Whether a norm of query heads takes them rotated: it then changes if nothing is rotated."""
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))

    def turn_off(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    with torch.no_grad():
        twin.module(twin.ids[None], use_cache=False)
        without = attention.register_forward_pre_hook(turn_off, with_kwargs=True)
        twin.module(twin.ids[None], use_cache=False)
    hook.remove()
    without.remove()
    return not same(*seen)


def read_feed_forward(found: Architecture, twin: Twin) -> Architecture:
    """Read the feed-forward block and its activation."""
    dense = [layer for layer in twin.layers if not has_experts(layer)]
    if len(dense) < len(twin.layers):
        experts = read_experts(twin)
        if experts is None:
            sparse = next(layer for layer in twin.layers if has_experts(layer))
            held = ", ".join(name for name, _ in sparse.mlp.named_parameters())
            return found.with_gaps(
                Gap("feed-forward", f"the expert blocks hold {held}, or are in layers, that no rule covers")
            )
        found = replace(found, experts=experts)
        if not dense:
            return found
    block = dense[0].mlp
    own = {name for name, _ in block.named_parameters()}
    weights = {name.removesuffix(".weight") for name in own if name.endswith(".weight")}
    biases = {name.removesuffix(".bias") for name in own if name.endswith(".bias")}
    kinds = {
        frozenset({"gate_proj", "up_proj", "down_proj"}): ("gated", ("up_proj", "down_proj")),
        frozenset({"gate_up_proj", "down_proj"}): ("fused", ("gate_up_proj", "down_proj")),
        frozenset({"up_proj", "down_proj"}): ("plain", ("up_proj", "down_proj")),
        frozenset({"c_fc", "c_proj"}): ("plain", ("c_fc", "c_proj")),
    }
    if frozenset(weights) not in kinds or biases not in (set(), weights):
        held = ", ".join(sorted(own)) or "nothing"
        return found.with_gaps(Gap("feed-forward", f"the feed-forward block holds {held}; written is Llama's"))
    mlp, names = kinds[frozenset(weights)]
    if mlp == "fused" and biases:
        found = found.with_gaps(Gap("weights", "gate_up_proj has a bias, which no rule takes apart"))
    found = replace(found, mlp=mlp, mlp_names=names, mlp_bias=bool(biases))
    function = next((part for name in ("act_fn", "act", "activation_fn") if (part := getattr(block, name, None))), None)
    x = torch.linspace(-4, 4, 33)
    for entry in ("hidden_act", "hidden_activation"):
        name = getattr(twin.config, entry, None)
        if name in ACT2FN and (function is None or same(ACT2FN[name](x), function(x))):
            return replace(found, activation=entry)
    return found.with_gaps(
        Gap("feed-forward", f"{type(function).__name__} is no activation that the configuration names")
    )
