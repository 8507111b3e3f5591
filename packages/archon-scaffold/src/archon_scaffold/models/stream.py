"""Reads attention scores, windows, the residual stream and logits.

Each function adds its findings about ``transformers``' small model to an ``Architecture``, and a ``Gap`` for every
unknown feature.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from archon_engine.nn.latent_attention import latent_scale
from archon_scaffold.models.architecture import Architecture, Gap
from archon_scaffold.models.experts import has_experts
from archon_scaffold.models.probes import factor_of, ratio, same
from archon_scaffold.models.tiny import head_dim_of
from archon_scaffold.models.twin import Twin

LATENT_SCALE = "latent_scale(sizes.head_dim, rope.parameters)"


def read_scores(found: Architecture, twin: Twin) -> Architecture:
    """Read the scale and soft cap of attention scores, and windows."""
    attention, config = twin.layers[0].self_attn, twin.config
    gaps: list[Gap] = []
    head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim if found.latent else head_dim_of(config)
    scalar, multiplier = (getattr(config, name, None) for name in ("query_pre_attn_scalar", "attention_multiplier"))
    candidates = {
        "config.query_pre_attn_scalar**-0.5": scalar and scalar**-0.5,
        "config.attention_multiplier": multiplier,
        "head_dim**-0.5": head_dim**-0.5,
    }
    if found.latent:
        candidates = {LATENT_SCALE: latent_scale(head_dim, config.rope_parameters)}
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
        scale=scale or ("head_dim**-0.5" if found.latent is None else LATENT_SCALE),
        windows=windows,
        attention_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    ).with_gaps(*gaps)


def read_stream(found: Architecture, twin: Twin) -> Architecture:
    """Read the scale of embeddings and of the blocks' additions."""
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
        gaps.append(Gap("decoder", "the input of the first layer is not the embedding times a known factor"))
    residual = "config.residual_multiplier" if getattr(config, "residual_multiplier", None) is not None else ""
    return replace(found, embedding_scale=scale or "", residual_scale=residual).with_gaps(*gaps)


def read_logits(found: Architecture, twin: Twin) -> Architecture:
    """Read the scale and soft cap of logits."""
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


def read_alike(found: Architecture, twin: Twin) -> Architecture:
    """Check that all layers have the parameters of the first one, or of the first one with experts."""
    shapes = [{name: tuple(p.shape) for name, p in layer.named_parameters()} for layer in twin.layers]
    sparse = [found.experts is not None and has_experts(layer) for layer in twin.layers]
    others = [number for number, own in enumerate(shapes) if own != shapes[sparse.index(sparse[number])]]
    if not others:
        return found
    numbers = ", ".join(map(str, others))
    return found.with_gaps(Gap("layer", f"layers {numbers} have other parameters than layer 0; all are written alike"))
