"""Models with experts in pairs, transformers' and ours, with equal random weights, and their comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import ModelSpec, registry
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.models.weight_conversion import assemble_hf, copy_from, fill_ours, read_from


def build(config: Any, dtype: torch.dtype) -> tuple[nn.Module, ResolvedMap]:
    """Our module of a configuration, and its weight map."""
    spec = registry().get(ModelSpec, config.model_type)
    model = spec.load()
    arguments = model.arguments.from_hf_config(config, critic=False)
    module = build_module(spec, arguments).to(dtype)
    return module, model.weight_map(arguments).resolve(weight_shapes(module))


def make_pair(entries: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, nn.Module, ResolvedMap, ResolvedMap]:
    """transformers' model and ours with its weights, the weight map, and the form of it that it has in memory.

    Biases for choosing experts are drawn too, so that they change choices.
    """
    config = load_hf_config(entries)
    generator = torch.Generator().manual_seed(7)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").to(dtype)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 1.0, generator=generator)
        for name, buffer in hf.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.3, generator=generator)
    ours, weights = build(config, dtype)
    state = hf.state_dict()
    in_memory, _ = form_of({name: tuple(tensor.shape) for name, tensor in state.items()}, weights)
    with torch.no_grad():
        for name, weight in named_weights(ours).items():
            fill_ours(weight, name, Box.whole(tuple(weight.shape)), in_memory, read_from(state))
    return hf, ours, weights, in_memory


def compare(entries: dict[str, Any], lengths: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    """Compare logits and every gradient of a pair on packed sequences."""
    hf, ours, _, in_memory = make_pair(entries, dtype)
    ids = torch.randint(0, entries["vocab_size"], (sum(lengths),), generator=torch.Generator().manual_seed(3))
    packed = PackedSequences.from_lengths(lengths, head=HeadInputs(outputs=("logits",)))
    found = ours(ids, packed)["logits"]
    expected = torch.cat([hf(sequence[None], use_cache=False).logits[0] for sequence in ids.split(lengths)])
    assert_close(found, expected, limit, "logits")
    upstream = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in hf.named_parameters():
        if name in in_memory.hf_shapes:
            theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            # Sums over tokens, experts and heads: each side rounds in another order.
            assert_close(assemble_hf(name, in_memory, copy_from(gradients), dtype), theirs, 5 * limit, name)


def assert_close(found: Tensor, expected: Tensor, limit: float, what: str) -> None:
    """Compare relative to the largest magnitude, or 1."""
    scale = expected.detach().abs().max().clamp(min=1.0)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=limit, msg=lambda text: f"{what}: {text}")
