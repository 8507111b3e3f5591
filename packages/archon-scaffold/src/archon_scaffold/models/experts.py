"""Reads expert blocks like those of Mixtral, Qwen2-MoE, GLM-4.5 and gpt-oss: entries of configurations, names in memory
and in files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from archon_scaffold.models.architecture import Experts
from archon_scaffold.models.probes import fitting_rules
from archon_scaffold.models.twin import Twin

IN_MEMORY = frozenset({"gate.weight", "experts.gate_up_proj", "experts.down_proj"})
"""Parameters of an expert block in ``transformers`` 5."""

CLAMPED = frozenset(
    {
        "router.weight",
        "router.bias",
        "experts.gate_up_proj",
        "experts.gate_up_proj_bias",
        "experts.down_proj",
        "experts.down_proj_bias",
    }
)
"""Parameters of a block of gpt-oss, in memory and in files."""

_SHARED = ("shared_expert", "shared_experts")
_SHARED_GATE = "shared_expert_gate"
_CHOICE_BIAS = "gate.e_score_correction_bias"
_SHARED_SIZES: Mapping[str, Callable[[Any], int]] = {
    "config.shared_expert_intermediate_size": lambda config: config.shared_expert_intermediate_size,
    "config.moe_intermediate_size * config.n_shared_experts": (
        lambda config: config.moe_intermediate_size * config.n_shared_experts
    ),
}

_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
_SIZES = ("moe_intermediate_size", "intermediate_size")

SPARSE: Mapping[str, Callable[[Any, int], bool]] = {
    "": lambda config, layer: True,
    "layer >= config.first_k_dense_replace": lambda config, layer: layer >= config.first_k_dense_replace,
    "layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0": (
        lambda config, layer: layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
    ),
    'config.mlp_layer_types[layer] == "sparse"': lambda config, layer: config.mlp_layer_types[layer] == "sparse",
}
"""Known rules for the layers that have experts: all of them, DeepSeek-V3's, Qwen2-MoE's, and that by layer types."""


def has_experts(layer: nn.Module) -> bool:
    """Whether the feed-forward block of a layer of ``transformers`` has experts."""
    return hasattr(getattr(layer, "mlp", None), "experts")


def read_experts(twin: Twin) -> Experts | None:
    """The expert blocks of a model; ``None`` if some of their parts are unknown."""
    config, sparse = twin.config, tuple(has_experts(layer) for layer in twin.layers)
    number_of_layer = sparse.index(True)
    block = twin.layers[number_of_layer].mlp
    own = {name for name, _ in block.named_parameters()}
    if own == CLAMPED:
        return _read_clamped(twin, block, sparse)
    shared = next((name for name in _SHARED if hasattr(block, name)), "")
    of_shared = {f"{shared}.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")} if shared else set()
    gate = {f"{_SHARED_GATE}.weight"} & own
    if own != IN_MEMORY | of_shared | gate:
        return None
    number, size = _entries_of(twin, block.experts.gate_up_proj.shape[0], block.experts.down_proj.shape[2])
    rule = fitting_rules(SPARSE, sparse, config)
    shared_size = _shared_size(config, getattr(block, shared).up_proj.weight.shape[0]) if shared else ""
    files = _names_in_files(twin, block, number_of_layer)
    if number is None or size is None or files is None or shared_size is None:
        return None
    if not rule or not hasattr(config, "num_experts_per_tok"):
        return None
    has_bias = any(name == _CHOICE_BIAS for name, _ in block.named_buffers())
    return Experts(
        number,
        "num_experts_per_tok",
        size,
        "config.norm_topk_prob" if hasattr(config, "norm_topk_prob") else "True",
        *files,
        sparse=rule[0],
        score="sigmoid" if has_bias else "softmax",
        scaling="config.routed_scaling_factor" if hasattr(config, "routed_scaling_factor") else "",
        grouped=None not in (getattr(config, "n_group", None), getattr(config, "topk_group", None)),
        choice_bias=f"mlp.{_CHOICE_BIAS}" if has_bias else "",
        shared=f"mlp.{shared}" if shared else "",
        shared_size=shared_size,
        shared_gate=f"mlp.{_SHARED_GATE}" if gate else "",
    )


def _read_clamped(twin: Twin, block: nn.Module, sparse: tuple[bool, ...]) -> Experts | None:
    """The expert blocks of gpt-oss, whose matrices lead from inputs to outputs."""
    number, size = _entries_of(twin, block.experts.gate_up_proj.shape[0], block.experts.down_proj.shape[1])
    entries = ("num_experts_per_tok", "swiglu_alpha", "swiglu_limit")
    if number is None or size is None or not all(sparse) or not all(hasattr(twin.config, name) for name in entries):
        return None
    return Experts(number, "num_experts_per_tok", size, "True", "mlp.router.weight", ("", "", ""), clamped=True)


def _entries_of(twin: Twin, n_experts: int, inner: int) -> tuple[str | None, str | None]:
    """The names of the entries with the number of experts and their intermediate size."""
    config, known = twin.config, twin.entries.keys() | vars(twin.config).keys()
    number = next((name for name in _NUMBERS if name in known and getattr(config, name) == n_experts), None)
    return number, next((name for name in _SIZES if name in known and getattr(config, name) == inner), None)


def _shared_size(config: Any, size: int) -> str | None:
    def value(rule: Callable[[Any], int]) -> int | None:
        try:
            return rule(config)
        except (AttributeError, TypeError):
            return None

    return next((expression for expression, rule in _SHARED_SIZES.items() if value(rule) == size), None)


def _names_in_files(twin: Twin, block: nn.Module, layer: int) -> tuple[str, tuple[str, str, str]] | None:
    """The names under which ``transformers`` saves single experts, found by their values."""
    with tempfile.TemporaryDirectory() as folder:
        twin.module.save_pretrained(folder)
        tensors: dict[str, Tensor] = {}
        for file in Path(folder).glob("*.safetensors"):
            tensors |= load_file(file)
    prefix = f"{twin.root}layers.{layer}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    gate, up = block.experts.gate_up_proj[1].detach().chunk(2)
    wanted = (block.gate.weight.detach(), gate, up, block.experts.down_proj[1].detach())
    names = [next((name for name, tensor in own.items() if _equal(tensor, part)), None) for part in wanted]
    if None in names:
        return None
    router, *projections = (str(name) for name in names)
    gate_name, up_name, down_name = (re.sub(r"\.1\.", ".{expert}.", name, count=1) for name in projections)
    return router, (gate_name, up_name, down_name)


def _equal(found: Tensor, right: Tensor) -> bool:
    return found.shape == right.shape and torch.equal(found, right)
