"""Reads rotary positions: their parameters, the elements that rotate together, and the layers that rotate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from archon_core.errors import ModelError
from archon_engine.nn.rotary import RopeArguments
from archon_scaffold.models.architecture import Architecture, Gap
from archon_scaffold.models.probes import fitting_rules, same
from archon_scaffold.models.tiny import head_dim_of
from archon_scaffold.models.twin import Twin, build_twin

ROTATES: Mapping[str, Callable[[Any, int], Any]] = {
    "": lambda config, layer: True,
    "config.no_rope_layers[layer]": lambda config, layer: config.no_rope_layers[layer],
    'config.layer_types[layer] == "sliding_attention"': (
        lambda config, layer: config.layer_types[layer] == "sliding_attention"
    ),
    'config.sliding_window is None or config.layer_types[layer] == "sliding_attention"': (
        lambda config, layer: config.sliding_window is None or config.layer_types[layer] == "sliding_attention"
    ),
}
"""Known rules for the layers that rotate: all of them, SmolLM3's, Cohere 2's and EXAONE 4's."""


def read_rotation(found: Architecture, twin: Twin) -> Architecture:
    """Read rotary parameters, and which elements and layers they rotate."""
    gaps, parameters = [], twin.config.rope_parameters or {}
    by_type = any(isinstance(value, Mapping) for value in parameters.values())
    sets = [value for value in parameters.values() if isinstance(value, Mapping)] if by_type else [parameters]
    partial = any(each.get("partial_rotary_factor") not in (None, 1.0) for each in sets)
    try:
        for kind in dict.fromkeys(twin.config.layer_types) if by_type else (None,):
            RopeArguments.from_hf_config(twin.config, head_dim_of(twin.config), layer_type=kind, partial=partial)
    except ModelError as error:
        gaps.append(Gap("arguments", f"rotary positions cannot be expressed: {error}"))
    rotates = _rule(twin)
    if rotates is None:
        without = ", ".join(str(layer) for layer, rotating in enumerate(rotating_layers(twin)) if not rotating)
        gaps.append(Gap("attention", f"layers {without} do not rotate queries and keys, and no known entry says which"))
    if rotates and by_type:
        gaps.append(Gap("attention", "some layers do not rotate, and the others have parameters of their layer type"))
    return replace(
        found,
        rotates=rotates or "",
        rope_by_layer_type=by_type,
        rope_interleaved=found.latent is None and not _rotates_halves(twin.layers[0]),
        rope_partial=partial,
    ).with_gaps(*gaps)


def rotating_layers(twin: Twin) -> tuple[bool, ...]:
    """For each layer, whether its attention reads the positions that the model hands to it."""
    calls: dict[int, tuple[dict[str, Any], Any]] = {}

    def keep(number: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not args:
                calls[number] = (kwargs, output[0] if isinstance(output, tuple) else output)

        return hook

    hooks = [
        layer.self_attn.register_forward_hook(keep(number), with_kwargs=True)
        for number, layer in enumerate(twin.layers)
    ]
    with torch.no_grad():
        twin.module(twin.ids[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        return tuple(_reads_positions(layer.self_attn, calls.get(number)) for number, layer in enumerate(twin.layers))


def _reads_positions(attention: nn.Module, call: tuple[dict[str, Any], Any] | None) -> bool:
    if call is None or not isinstance(call[0].get("position_embeddings"), tuple):
        return True
    kwargs, expected = call
    cos, sin = kwargs["position_embeddings"]
    output = attention(**{**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))})
    return not same(output[0] if isinstance(output, tuple) else output, expected)


def _rule(twin: Twin) -> str | None:
    """The rule in ``ROTATES`` that gives the rotating layers of the small model, and of one without windows where that
    decides between several."""
    fitting = fitting_rules(ROTATES, rotating_layers(twin), twin.config)
    if len(fitting) > 1 and getattr(twin.config, "layer_types", None) is not None:
        entries = {**twin.entries, "sliding_window": None, "layer_types": ["full_attention"] * len(twin.layers)}
        with suppress(ModelError, ValueError):  # of a family that has no models without windows
            whole = build_twin(entries)
            also = fitting_rules(ROTATES, rotating_layers(whole), whole.config)
            fitting = tuple(rule for rule in fitting if rule in also) or fitting
    return fitting[0] if fitting else None


def _rotates_halves(layer: nn.Module) -> bool:
    """Whether the model's source rotates halves of a head, as Llama does, and not adjacent elements; true if
    unknown."""
    rotate = getattr(sys.modules[type(layer).__module__], "rotate_half", None)
    if rotate is None:
        return True
    x = torch.arange(1.0, 9.0)[None]
    return torch.equal(rotate(x), torch.cat((-x[:, 4:], x[:, :4]), -1))
