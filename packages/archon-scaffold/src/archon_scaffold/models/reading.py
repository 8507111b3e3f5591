"""The architecture behind a configuration: read off ``transformers``' own model, tried out where names do not tell.

What a package cannot be written for becomes a ``Gap``; what of a configuration is not read becomes a fixed entry, which
the written package refuses to see with another value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.activations import ACT2FN

from archon_core.errors import ModelError
from archon_core.nn.rotary import RopeArguments
from archon_scaffold.models.architecture import Architecture, Gap, NormForm, NormPlace
from archon_scaffold.models.fixed_entries import fixed_entries
from archon_scaffold.models.probes import factor_of, norm_eps, norm_form, ratio, rotates_halves, same
from archon_scaffold.models.source import HFSource
from archon_scaffold.models.tiny import tiny_entries
from archon_scaffold.models.twin import Twin, build_twin

NORMS: tuple[dict[str, NormPlace], ...] = (
    {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
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
"""The sets of norms that layers are known to have, and where each stands: in Llama, OLMo 2, Gemma 2, GLM 4."""

EPS_ENTRIES = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")


def read_architecture(source: HFSource) -> tuple[Architecture, Twin]:
    """The architecture, and the small model that it was read off.

    Raises:
        ModelError: it is no decoder of the Llama line.
    """
    tiny = tiny_entries(source.entries, source.config)
    twin = build_twin(tiny)
    base = Architecture(
        model_type=source.model_type,
        causal_class=source.causal_class,
        critic=bool(source.critic_class),
        tiny=tiny,
        fixed={},
        norms={},
        root=twin.root,
        own_head_dim=hasattr(source.config, "head_dim"),
        dropout=hasattr(source.config, "attention_dropout"),
    )
    found = base
    for read in (_norms, _attention, _query_key_norms, _feed_forward, _scores, _rotation, _stream, _logits, _alike):
        found = read(found, twin)
    fixed, unread = fixed_entries(source, twin.config, found)
    return replace(found, fixed=fixed).with_gaps(*unread), twin


def _norms(found: Architecture, twin: Twin) -> Architecture:
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


def _attention(found: Architecture, twin: Twin) -> Architecture:
    own = {
        name.removeprefix("self_attn."): shape for name, shape in twin.names.items() if name.startswith("self_attn.")
    }
    gaps: list[Gap] = []
    fused = "qkv_proj" if "qkv_proj.weight" in own else ""
    inputs = (fused,) if fused else ("q_proj", "k_proj", "v_proj")
    known = {f"{name}.{kind}" for name in (*inputs, "o_proj") for kind in ("weight", "bias")}
    known |= {"q_norm.weight", "k_norm.weight"}
    missing = [f"{name}.weight" for name in (*inputs, "o_proj") if f"{name}.weight" not in own]
    if missing or set(own) - known:
        others = ", ".join(sorted(set(own) - known)) or "no others"
        gaps.append(
            Gap("attention", f"attention lacks {', '.join(missing) or 'nothing'} of Llama's and holds {others}")
        )
    biased = {f"{name}.bias" in own for name in inputs}
    if fused and True in biased:
        gaps.append(Gap("weights", f"{fused} has a bias, which no rule takes apart"))
    if len(biased) > 1:
        gaps.append(Gap("attention", "some of query, key and value projections have biases, and others none"))
    return replace(found, fused_qkv=fused, qkv_bias=True in biased, output_bias="o_proj.bias" in own).with_gaps(*gaps)


def _query_key_norms(found: Architecture, twin: Twin) -> Architecture:
    attention = twin.layers[0].self_attn
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if norms == [None, None]:
        return found
    head_dim, config = _head_dim(twin), twin.config
    sizes = [tuple(norm.weight.shape) if hasattr(norm, "weight") else None for norm in norms]
    whole = [(config.num_attention_heads * head_dim,), (config.num_key_value_heads * head_dim,)]
    forms = {norm_form(norm) if hasattr(norm, "weight") else None for norm in norms}
    form = next(iter(forms)) if len(forms) == 1 else None
    if form is None or form.kind != "rms" or sizes not in ([(head_dim,)] * 2, whole):
        kinds = ", ".join(type(norm).__name__ for norm in norms)
        return found.with_gaps(
            Gap("attention", f"queries and keys go through {kinds} of sizes {sizes}, not an RMS norm")
        )
    return replace(found, qk_norm="head" if sizes != whole else "projection", qk_norm_form=form)


def _feed_forward(found: Architecture, twin: Twin) -> Architecture:
    own = {name.removeprefix("mlp.") for name in twin.names if name.startswith("mlp.")}
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
    block = twin.layers[0].mlp
    function = next((part for name in ("act_fn", "act", "activation_fn") if (part := getattr(block, name, None))), None)
    x = torch.linspace(-4, 4, 33)
    for entry in ("hidden_act", "hidden_activation"):
        name = getattr(twin.config, entry, None)
        if name in ACT2FN and (function is None or same(ACT2FN[name](x), function(x))):
            return replace(found, activation=entry)
    return found.with_gaps(
        Gap("feed-forward", f"{type(function).__name__} is no activation that the configuration names")
    )


def _scores(found: Architecture, twin: Twin) -> Architecture:
    attention, config = twin.layers[0].self_attn, twin.config
    head_dim, gaps = _head_dim(twin), []
    scalar, multiplier = (getattr(config, name, None) for name in ("query_pre_attn_scalar", "attention_multiplier"))
    candidates = {
        "config.query_pre_attn_scalar**-0.5": scalar and scalar**-0.5,
        "config.attention_multiplier": multiplier,
        "head_dim**-0.5": head_dim**-0.5,
    }
    scaling = getattr(attention, "scaling", head_dim**-0.5)
    scale = factor_of(scaling, candidates)
    if scale is None:
        gaps.append(Gap("attention", f"scores are multiplied by {scaling:.6g}, which no known entry gives"))
    types = getattr(config, "layer_types", None)
    unknown = sorted(set(types or ()) - {"full_attention", "sliding_attention"})
    if unknown:
        gaps.append(Gap("attention", f"layer_types has {', '.join(unknown)}; written are full and sliding attention"))
    windows = "layer_types" if types else ("all" if hasattr(config, "sliding_window") else None)
    return replace(
        found,
        scale=scale or "head_dim**-0.5",
        windows=windows,
        attention_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    ).with_gaps(*gaps)


def _rotation(found: Architecture, twin: Twin) -> Architecture:
    gaps = []
    try:
        RopeArguments.from_hf_config(twin.config, _head_dim(twin))
    except ModelError as error:
        gaps.append(Gap("arguments", f"rotary positions cannot be expressed: {error}"))
    if not rotates_halves(twin.layers[0]):
        gaps.append(
            Gap("attention", "rotation takes neighbouring elements of a head together; written is Llama's, of halves")
        )
    without = [number for number, kept in enumerate(getattr(twin.config, "no_rope_layers", None) or ()) if not kept]
    if without:
        gaps.append(
            Gap("attention", f"layers {', '.join(map(str, without))} do not rotate queries and keys (no_rope_layers)")
        )
    return found.with_gaps(*gaps)


def _stream(found: Architecture, twin: Twin) -> Architecture:
    config, gaps = twin.config, []
    rows = twin.module.get_input_embeddings().weight.detach()[twin.ids]
    factor = ratio(twin.trace["embed"], rows)
    candidates = {
        "": 1.0,
        "config.embedding_multiplier": getattr(config, "embedding_multiplier", None),
        "config.hidden_size**0.5": config.hidden_size**0.5,
    }
    scale = None if factor is None else factor_of(factor, candidates)
    if scale is None:
        gaps.append(Gap("decoder", "what enters the first layer is not the embedding times a known number"))
    residual = "config.residual_multiplier" if getattr(config, "residual_multiplier", None) is not None else ""
    return replace(found, embedding_scale=scale or "", residual_scale=residual).with_gaps(*gaps)


def _logits(found: Architecture, twin: Twin) -> Architecture:
    config, gaps = twin.config, []
    head = twin.module.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        gaps.append(Gap("decoder", "the language-model head has a bias"))
    cap = getattr(config, "final_logit_softcapping", None)
    projection, logits = twin.trace["projection"], twin.trace["logits"]
    scales = {
        "": 1.0,
        "1.0 / config.logits_scaling": 1.0 / divisor if (divisor := getattr(config, "logits_scaling", None)) else None,
        "config.logit_scale": getattr(config, "logit_scale", None),
    }
    for expression, scale in scales.items():
        for softcap in (None, cap):
            if scale is None:
                continue
            scaled = projection * scale
            if same(scaled if softcap is None else softcap * torch.tanh(scaled / softcap), logits):
                return replace(found, logit_scale=expression, logit_softcap=softcap is not None).with_gaps(*gaps)
    return found.with_gaps(
        *gaps, Gap("decoder", "logits are neither the head's product, nor it scaled or capped as known")
    )


def _alike(found: Architecture, twin: Twin) -> Architecture:
    first = twin.names
    others = [
        number
        for number, layer in enumerate(twin.layers)
        if {name: tuple(p.shape) for name, p in layer.named_parameters()} != first
    ]
    if not others:
        return found
    numbers = ", ".join(map(str, others))
    return found.with_gaps(Gap("layer", f"layers {numbers} have other parameters than layer 0; all are written alike"))


def _head_dim(twin: Twin) -> int:
    config: Any = twin.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
