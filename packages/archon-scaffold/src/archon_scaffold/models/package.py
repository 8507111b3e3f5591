"""Renders the files of a model package for an architecture, with only the code that the family needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from archon_scaffold.models.architecture import Architecture
from archon_scaffold.models.tiny import OF_ALL_LAYERS
from archon_scaffold.names import PackageName
from archon_scaffold.rendering import render_folder

CLASS_OF = {"rms": "RMSNorm", "layer": "LayerNorm"}


def model_files(name: PackageName, architecture: Architecture) -> dict[str, str]:
    """Path -> text of every file."""
    context = model_context(name, architecture)
    without = frozenset() if architecture.gaps else frozenset({"tests/test_gaps.py.jinja"})
    return {**render_folder("package", context), **render_folder("model", context, without=without)}


def model_context(name: PackageName, architecture: Architecture) -> dict[str, Any]:
    """The variables of the templates."""
    a = architecture
    aliases, norm_name, qk_norm_class = _norm_names(a)
    capabilities = ["tp", "cp", "pp", "tied", "tree", *(["critic"] if a.critic else []), *(["ep"] if a.experts else [])]
    experts = ["archon-moe>=0.1,<1"] if a.experts else []
    return {
        "spec": name.spec,
        "module": name.module,
        "title": name.title,
        "kind": "model",
        "description": f"{name.title}: a model of type {a.model_type} for the Archon training engine",
        "summary": f"model type {a.model_type}: {_story(a)}",
        "requires": ["archon-core>=0.1,<1", "archon-engine>=0.1,<1"],
        "test_requires": [*experts, "archon-pipeline>=0.1,<1", "archon-testing>=0.1,<1", "pytest>=8.3"],
        "a": a,
        "gaps_at": a.gaps_at,
        "capabilities": capabilities,
        "story": _story(a),
        # num_local_experts is what transformers calls num_experts inside.
        "honoured": _honoured(a),
        "dropout": _dropout(a),
        "attention_story": _attention_story(a),
        "aliases": aliases,
        "norm_name": norm_name,
        "qk_norm_class": qk_norm_class,
        "archon_imports": _archon_imports(a),
        "attention_scale": a.scale != "head_dim**-0.5",
        "attention_settings": _attention_settings(a),
        "rotated": _rotated(a),
        "attention_branch": _branch(a, "attention", "self.attention({x}, rotation, packed)"),
        "mlp_branch": _branch(a, "mlp", "self.moe({x}, packed)" if a.experts else "self.mlp({x})"),
        "sparse_branch": _branch(a, "mlp", "self.feed_forward({x}, packed)"),
        "block_story": _block_story(a),
        "swiglu": f"SwiGLU(a.hidden_size, a.intermediate_size, a.hidden_act{', bias=True' if a.mlp_bias else ''})",
        "rounded_embedding": a.embedding_scale == "config.hidden_size**0.5",
        "embedding": _embedding(a),
        "head": _head(a),
        "rope_options": _rope_options(a),
        "rotary": "RotaryEmbedding(a.rope)" if a.rotates_alike else "LayerRotaryEmbedding(a.ropes)",
        "plain_names": a.qk_norm_names == ("q_norm", "k_norm") and not a.sinks,
        "attention_names": _attention_names(a),
        "rules": _rules(a),
        "has_single_experts": a.experts is not None and not a.experts.clamped,
        "rule_types": _rule_types(a),
        "lists_of_two": _lists_of_two(a.tiny),
    }


def _norm_names(a: Architecture) -> tuple[dict[str, str], str, str]:
    """Aliases of norms with options -> expression; and the names of the norms of the residual stream and of queries and
    keys."""
    aliases: dict[str, str] = {}
    norm_name = CLASS_OF[a.norm.kind]
    if a.norm.options:
        aliases["Norm"], norm_name = f"partial({norm_name}, {a.norm.options})", "Norm"
    if a.qk_norm == "head" and a.qk_norm_form == a.norm:
        return aliases, norm_name, norm_name
    of_heads = "RMSNorm" if a.qk_norm == "head" else "ProjectionRMSNorm"
    if a.qk_norm and a.qk_norm_form.options:
        aliases["QueryKeyNorm"], of_heads = f"partial({of_heads}, {a.qk_norm_form.options})", "QueryKeyNorm"
    return aliases, norm_name, of_heads


def _archon_imports(a: Architecture) -> list[str]:
    norms = {CLASS_OF[a.norm.kind]}
    norms |= {"RMSNorm"} if a.qk_norm == "head" else set()
    norms |= {"ProjectionRMSNorm"} if a.qk_norm == "projection" else set()
    block = {"archon_engine.nn.swiglu": {"activation" if a.mlp == "plain" else "SwiGLU"}} if a.dense else {}
    if a.experts:
        block["archon_core.contracts.moe"] = {"MoEBuilder"}
    linear = {"archon_engine.nn.linear": {"Linear"}}
    if a.latent is not None:
        block |= {"archon_engine.nn.latent_attention": {"LatentAttention"}}
        block |= linear if a.mlp == "plain" and a.dense else {}
    else:
        block |= linear | {"archon_engine.nn.attention": {"PackedAttention", *(["AttentionSinks"] if a.sinks else [])}}
    imports: Mapping[str, set[str]] = {
        "archon_core.contracts.packed": {"OutputName", "PackedSequences"}
        | ({"AttentionSettings"} if a.latent is None else set()),
        "archon_core.models.stage": {"Stage"},
        "archon_engine.nn.embedding": {"Embedding"},
        "archon_engine.nn.head": {"LanguageModelHead", *(["ValueHead"] if a.critic else [])},
        "archon_engine.nn.norm": norms,
        "archon_engine.nn.rotary": {"RotaryEmbedding" if a.rotates_alike else "LayerRotaryEmbedding", "Rotation"},
        **block,
    }
    return [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]


def _attention_settings(a: Architecture) -> str:
    """The arguments of ``AttentionSettings``."""
    parts = [f"scale={'a.attention_scale' if a.scale.startswith('config.') else 'a.head_dim**-0.5'}"]
    parts += ["window=a.windows[layer]"] if a.windows else []
    parts += ["softcap=a.attention_softcap"] if a.attention_softcap else []
    parts += ["sinks=True"] if a.sinks else []
    return ", ".join(parts)


def _branch(a: Architecture, block: str, call: str) -> str:
    """The expression of a block's addition to the residual stream: ``self.mlp(self.mlp_norm(x))``."""
    inside = f"self.{block}_norm(x)" if f"{block}_norm" in a.norms else ("h" if a.parallel else "x")
    branch = call.format(x=inside)
    if f"{block}_out_norm" in a.norms:
        branch = f"self.{block}_out_norm({branch})"
    return f"self.residual_scale * {branch}" if a.residual_scale else branch


def _embedding(a: Architecture) -> str:
    scale = ", scale=a.embedding_scale" if a.embedding_scale == "config.hidden_size**0.5" else ""
    return f"Embedding(a.vocab_size, a.hidden_size{scale})"


def _head(a: Architecture) -> str:
    scale = ", scale=a.logit_scale" if a.logit_scale else ""
    softcap = ", softcap=a.logit_softcap" if a.logit_softcap else ""
    return f"LanguageModelHead(a.hidden_size, a.vocab_size{scale}{softcap})"


def _rules(a: Architecture) -> list[str]:
    split = ["Split"] if a.fused_qkv or a.mlp == "fused" else []
    if a.experts and a.experts.clamped:
        return ["Drop", "Interleave", "Rename", *split, "Tie", "WeightMap"]
    if a.experts:
        return ["Drop", "Rename", "Split", "Stack", "Tie", "WeightMap"]
    return ["Drop", "Rename", *split, "Tie", "WeightMap"]


def _rule_types(a: Architecture) -> str:
    """The kinds of rules outside of ``ONE_BY_ONE`` and ``FUSED``."""
    names = _rules(a)
    if a.experts and not (a.dense and a.mlp == "fused"):
        names = [name for name in names if name != "Split" or a.fused_qkv]
    return " | ".join(name for name in names if name not in ("Stack", "WeightMap"))


def _honoured(a: Architecture) -> str:
    names = [
        '"head_dim"',
        *(['"qk_head_dim"'] if a.latent else []),
        *(['"num_local_experts"'] if a.experts else []),
        *(["*FIXED"] if a.fixed else []),
    ]
    return ", ".join(names) if len(names) > 1 else f"{names[0]},"


def _dropout(a: Architecture) -> str:
    entries = ", ".join(f"config.{name}" for name in a.dropouts)
    return entries if len(a.dropouts) < 2 else f"max({entries})"


def _attention_names(a: Architecture) -> dict[str, str]:
    """Hugging Face's names of attention's weights -> ours, for families in which some differ."""
    same = ("q_proj", "k_proj", "v_proj", "o_proj")
    norms = dict(zip(a.qk_norm_names, ("q_norm", "k_norm"), strict=True)) if a.qk_norm else {}
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in ({name: name for name in same} | norms).items()}
    return names | ({"sinks": "sinks.weight"} if a.sinks else {})


def _rotated(a: Architecture) -> tuple[str, str]:
    """The expressions of the queries and keys that attention takes."""
    rotated = ("rotation.apply(q)", "rotation.apply(k)")
    return (f"self.q_norm({rotated[0]})", f"self.k_norm({rotated[1]})") if a.qk_norm_rotated else rotated


def _rope_options(a: Architecture) -> str:
    """Further arguments of ``RopeArguments.from_hf_config``."""
    if a.latent is not None:
        return "" if a.latent.interleaved == "False" else f", interleaved={a.latent.interleaved}"
    options = ["layer_type=kind"] if a.rope_by_layer_type else []
    options += ["partial=True"] if a.rope_partial else []
    options += ["interleaved=True"] if a.rope_interleaved else []
    return "".join(f", {option}" for option in options)


def _lists_of_two(tiny: Mapping[str, Any]) -> str:
    """The entries with a value per layer, for a configuration of two layers."""
    return "".join(f", {name}={json.dumps(tiny[name][:2])}" for name in OF_ALL_LAYERS if tiny.get(name))


def _story(a: Architecture) -> str:
    behind = [place for place in a.norms if place.endswith("_out_norm")]
    if a.parallel:
        where = "parallel"
    else:
        where = "pre-norm" if not behind else ("post-norm" if len(behind) == len(a.norms) else "twice normalised")
    attention = "latent attention" if a.latent else "capped attention" if a.attention_softcap else "attention"
    if a.experts:
        return f"{where} {attention} and blocks of experts{' in some layers' if a.dense else ''}"
    block = "plain" if a.mlp == "plain" else "gated"
    return f"{where} {attention} and {block} feed-forward blocks"


def _block_story(a: Architecture) -> str:
    if a.experts is None:
        return "feed-forward block"
    return "a block of experts or a feed-forward block" if a.dense else "a block of experts"


def _attention_story(a: Architecture) -> str:
    grouped = a.tiny["num_key_value_heads"] != a.tiny["num_attention_heads"]
    normed = {"head": ", of normalised query and key heads", "projection": ", of normalised queries and keys", None: ""}
    start = "Grouped-query self-attention" if grouped else "Self-attention"
    return f"{start} with rotary positions{normed[a.qk_norm]}"
