"""Grouped-query attention with all of its options against the formula, one sequence at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.grouped_attention import GroupedQueryAttention
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import RopeArguments, RotaryEmbedding, Rotation

HIDDEN, N_HEADS, N_KV_HEADS, HEAD_DIM = 12, 6, 2, 4
LENGTHS = (5, 1, 4)
OPTIONS = {
    "plain": {},
    "biases": {"bias": True, "output_bias": True},
    "norms and gates": {"head_norm": partial(RMSNorm, eps=1e-6), "output_gate": True},
    "sinks": {"bias": True, "settings": AttentionSettings(scale=0.6, sinks=True)},
}


def formula(layer: GroupedQueryAttention, x: Tensor, rotation: Rotation) -> Tensor:
    def heads(name: str, n_heads: int) -> Tensor:
        projection = getattr(layer, f"{name}_proj")
        return functional.linear(x, projection.weight, projection.bias).view(len(x), n_heads, -1)

    q, gates = heads("q", N_HEADS), None
    if q.shape[2] > HEAD_DIM:
        q, gates = q[..., :HEAD_DIM], q[..., HEAD_DIM:]
    k, v = heads("k", N_KV_HEADS), heads("v", N_KV_HEADS)
    if layer.q_norm is not None:
        q, k = (
            functional.rms_norm(part, (HEAD_DIM,), norm.weight, 1e-6)
            for part, norm in ((q, layer.q_norm), (k, layer.k_norm))
        )
    q, k = rotation.apply(q), rotation.apply(k)
    results = []
    for q_one, k_one, v_one in zip(*(part.split(LENGTHS) for part in (q, k, v)), strict=True):
        keys, values = (part.repeat_interleave(N_HEADS // N_KV_HEADS, 1) for part in (k_one, v_one))
        scores = torch.einsum("thd,shd->hts", q_one, keys) * layer.core.settings.scale
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
        if layer.sinks is not None:
            scores = torch.cat((scores, layer.sinks.weight[:, None, None].expand(-1, len(q_one), 1)), dim=2)
        weights = scores.softmax(2)[..., : len(q_one)]
        results.append(torch.einsum("hts,shd->thd", weights, values))
    out = torch.cat(results)
    out = out if gates is None else out * gates.sigmoid()
    return functional.linear(out.flatten(1), layer.o_proj.weight, layer.o_proj.bias)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_the_formula_in_value_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "n_heads": N_HEADS, "n_kv_heads": N_KV_HEADS, "head_dim": HEAD_DIM}
    layer = GroupedQueryAttention(3, **{"settings": AttentionSettings(scale=0.5), **sizes, **OPTIONS[name]}).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    rope = Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    packed = PackedSequences.from_lengths(LENGTHS)
    rotation = RotaryEmbedding(RopeArguments.from_hf_config(rope, HEAD_DIM))(packed, torch.float64)
    x = torch.randn(sum(LENGTHS), HIDDEN, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(sum(LENGTHS), HIDDEN, dtype=torch.float64)
    of = {"x": x, **dict(layer.named_parameters())}
    found, expected = layer(x, rotation, packed), formula(layer, x, rotation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    pairs = zip(*(torch.autograd.grad(y, list(of.values()), upstream) for y in (found, expected)), strict=True)
    assert [which for which, (a, b) in zip(of, pairs, strict=True) if not (a - b).abs().max() < 1e-10] == []
    assert layer.core.layer == "3"
