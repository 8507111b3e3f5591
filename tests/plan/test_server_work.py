"""Work and memory of a planned server equal those of the local engine on a real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_moe.kernels.operation import grouped_experts  # noqa: F401, registers torch.ops.archon_moe
from archon_plan.models import read_anatomy
from archon_plan.server import Server
from archon_rollout.kv_cache import DecodeCache, KeptSequence
from archon_rollout.local_engine import LocalEngine

CASES = {
    "qwen3": ("qwen3", {}),
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "one key head": ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10}),
    "biases": ("qwen2", {}),
    "experts": ("qwen3_moe", {}),
}
PROMPTS, N_SAMPLES, N_NEW = (3, 7, 12), 4, 9


def build(case: str) -> tuple[Any, Server]:
    """A trainer with the model, and its server in fp32."""
    name, changes = CASES[case]
    spec = registry().get(ModelSpec, name)
    entries = {**load_target(spec.tiny_config)(), **changes}
    trainer = assemble(EngineConfig(model_config=entries, dtype="float32"), layout=parse_layout("archon:d1"), seed=1)
    trainer.initialize()
    return trainer, Server(read_anatomy(spec, entries), weight_bytes=4, cache_bytes=4)


def _of_pairs(x, weights, gate, up, down, pairs, *rest, out_shape=None, **options) -> int:
    """Three products of every pair of a token and one of its experts, which torch's counter does not know."""
    return 2 * pairs[0] * 3 * gate[1] * gate[2]


@pytest.mark.parametrize("case", CASES)
def test_products_of_sampling_equal_those_that_torch_counts(case: str) -> None:
    trainer, server = build(case)
    config = GenerationConfig(n_samples=N_SAMPLES, max_new_tokens=N_NEW, ignore_eos=True)
    requests = [GenerationRequest((1,) * length, config, tuple(range(N_SAMPLES))) for length in PROMPTS]
    engine = LocalEngine(RolloutConfig(max_batch_size=8), trainer=trainer)
    formulas = {torch.ops.archon_moe.grouped_experts: _of_pairs}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        completions = engine.generate(requests)
    assert {len(one.token_ids) for group in completions for one in group} == {N_NEW}
    counts = counter.get_flop_counts()["Global"]
    attention = {torch.ops.aten.bmm, torch.ops.aten.baddbmm, *(op for op in counts if "attention" in str(op))}
    counted = sum(flops for op, flops in counts.items() if op not in attention)
    # Samples share the prefill, whose last position gives each its first token.
    n_decoded = len(PROMPTS) * N_SAMPLES * (N_NEW - 1)
    planned = (sum(PROMPTS) + n_decoded) * server.layer_flops + (len(PROMPTS) + n_decoded) * server.head_flops
    assert counted == planned


@pytest.mark.parametrize("case", CASES)
def test_weights_and_cache_have_their_bytes(case: str) -> None:
    trainer, server = build(case)
    weights = {id(one): one.numel() * one.element_size() for one in trainer.module.parameters()}
    assert sum(weights.values()) == server.weights
    cache = DecodeCache(max_rows=5, max_places=32)
    anatomy = server.anatomy
    keys = {
        f"layers.{number}": tuple(
            torch.zeros(20, layer.attention.heads.key_value, size)
            for size in (layer.attention.head_dim, layer.attention.value_dim)
        )
        for number, layer in enumerate(anatomy.layers)
    }
    cache.write_rows(0, KeptSequence(keys), 5)
    held = sum(buffer.numel() * 4 for buffers in cache._layers.values() for buffer in buffers)  # no public size
    assert held == server.cached(5 * 32, 5)
