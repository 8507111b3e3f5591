"""Planned memory of activations against torch's memory tracker, which runs the real modules without values."""

from __future__ import annotations

import pytest

from archon_core import registry
from archon_core.layout.dims import ParallelDims
from archon_engine.nn import head, tiles
from archon_plan import head_memory, layer_operations
from archon_plan.activations import activation_parts
from archon_plan.models import read_anatomy
from archon_plan.setting import Checkpointing, Setting, SharedPrompt, Tokens, Types
from plan.sharded_ranks import fake_rank
from plan.small_models import DENSE
from plan.tracked import largest_activations

TOLERANCE = 0.003
"""Sizes are sums of named tensors, so they agree but for the rounding of rows per rank, and indices."""

QWEN2 = {**{name: value for name, value in DENSE.items() if name != "head_dim"}, "model_type": "qwen2"}
EXPERTS = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "mlp_only_layers": [0],
}
"""One dense layer and two with experts."""

GROUPED = {
    **{name: value for name, value in DENSE.items() if name != "num_key_value_heads"},
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
}
LATENT = {
    **{name: value for name, value in GROUPED.items() if name != "head_dim"},
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
PARTIAL = {**GROUPED, "model_type": "glm4_moe", "num_key_value_heads": 2, "use_qk_norm": True}
"""A part of each head is rotated."""

HYBRID = {
    **DENSE,
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
HYBRID_EXPERTS = {
    **{name: value for name, value in HYBRID.items() if name != "intermediate_size"},
    "model_type": "qwen3_5_moe_text",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 96,
}

SINKS = {
    **{name: value for name, value in DENSE.items() if name != "intermediate_size"},
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
}
"""Sinks in attention, a window in one of two layers, and experts with biases and a clamped gate."""

WINDOWS = {**DENSE, "num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}
"""A window in one of two layers."""

DATA = ParallelDims(dp_shard=8)
TENSOR = ParallelDims(dp_shard=4, tp=2)
CONTEXT = ParallelDims(dp_shard=4, cp=2)
EXPERT = ParallelDims(dp_shard=8, ep=4)
EXPERT_TENSOR = ParallelDims(dp_shard=4, tp=2, ep=4, etp=2)


@pytest.fixture(scope="module", autouse=True)
def ranks():
    with fake_rank(0, 8):
        yield


def check(
    entries,
    dims,
    mode: Checkpointing,
    every=None,
    *,
    value_bytes=2,
    critic=False,
    tokens=1024,
    style="auto",
    left_out=0,
    shared=None,
    sequence=512,
) -> None:
    setting = Setting(
        anatomy=read_anatomy(registry().model_for(entries["model_type"]), entries, critic=critic),
        dims=dims,
        tokens=Tokens(tokens, sequence=sequence, shared=shared),
        types=Types(compute=value_bytes),
        checkpointing=mode,
        every=every,
        cp_style=style,
    )
    planned = sum(part.bytes for part in activation_parts(setting, 0, imbalance=1.0, on_cpu=True))
    assert planned + left_out == pytest.approx(largest_activations(entries, setting), rel=TOLERANCE)


EVERY_MODE: list[tuple[Checkpointing, int | None]] = [
    ("none", None),
    ("selective", None),
    ("selective", 2),
    ("full", None),
]


def test_chunks_of_logits_have_the_size_of_the_heads():
    assert (head_memory.CHUNK_BYTES, head_memory.GPU_CHUNK_BYTES) == (head.CHUNK_BYTES, head.GPU_CHUNK_BYTES)


def test_tiles_of_rows_have_the_size_of_the_layers():
    assert layer_operations.TILE_ELEMENTS == tiles.TILE_ELEMENTS


def test_a_dense_model_keeps_and_recomputes_what_is_planned():
    check(DENSE, DATA, "selective")


def test_experts_over_ranks_keep_and_recompute_what_is_planned():
    check({**EXPERTS, "num_hidden_layers": 2}, EXPERT, "full")


@pytest.mark.wide
@pytest.mark.parametrize(("mode", "every"), EVERY_MODE)
@pytest.mark.parametrize("entries", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_every_mode_keeps_and_recomputes_what_is_planned(entries, mode, every):
    check(entries, DATA, mode, every)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("entries", "dims", "mode"),
    [
        (DENSE, TENSOR, "selective"),
        (DENSE, TENSOR, "full"),
        (DENSE, CONTEXT, "none"),
        (DENSE, CONTEXT, "selective"),
        (EXPERTS, EXPERT, "none"),
        (EXPERTS, EXPERT_TENSOR, "selective"),
        (EXPERTS, EXPERT_TENSOR, "full"),
        (LATENT, TENSOR, "none"),
        (LATENT, CONTEXT, "selective"),
        (PARTIAL, TENSOR, "none"),
        (HYBRID, DATA, "none"),
        (HYBRID, DATA, "selective"),
        (HYBRID, TENSOR, "none"),
        (HYBRID_EXPERTS, TENSOR, "full"),
        (SINKS, TENSOR, "none"),
        (SINKS, CONTEXT, "selective"),
    ],
    ids=[
        "d4t2",
        "d4t2-full",
        "d4c2-none",
        "d4c2",
        "d8e4-none",
        "d4t2e4etp2",
        "d4t2e4etp2-full",
        "latent-d4t2-none",
        "latent-d4c2",
        "partial-d4t2-none",
        "hybrid-d8-none",
        "hybrid-d8",
        "hybrid-d4t2-none",
        "hybrid-experts-d4t2-full",
        "sinks-d4t2-none",
        "sinks-d4c2",
    ],
)
def test_axes_shard_what_is_kept_and_recomputed(entries, dims, mode):
    check(entries, dims, mode)


@pytest.mark.wide
@pytest.mark.parametrize(("mode", "every"), EVERY_MODE)
def test_scores_with_sinks_are_in_memory_on_a_cpu(mode, every):
    check(SINKS, DATA, mode, every)


@pytest.mark.wide
@pytest.mark.parametrize("mode", ["none", "full"])
def test_long_sequences_with_sinks_are_attended_in_parts(mode):
    check(SINKS, DATA, mode, tokens=2048, sequence=2048)


@pytest.mark.wide
def test_long_sequences_with_a_window_are_attended_in_parts():
    check(WINDOWS, DATA, "none", tokens=2048, sequence=2048)


@pytest.mark.wide
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_samples_keep_their_prompt_once(mode):
    # Two prompts of 256 tokens, with 4 samples of 128 each.
    check(DENSE, DATA, mode, tokens=1536, sequence=384, shared=SharedPrompt(256, 4))


@pytest.mark.wide
def test_activations_in_fp32():
    check(DENSE, DATA, "none", value_bytes=4)


@pytest.mark.wide
def test_heads_without_norms():
    check(QWEN2, DATA, "none")


@pytest.mark.wide
def test_tensor_ranks_exchange_parts_of_key_heads():
    check(DENSE, ParallelDims(dp_shard=2, tp=4), "none")


@pytest.mark.wide
def test_context_ranks_copy_key_heads():
    check(DENSE, ParallelDims(dp_shard=2, cp=4), "none")


@pytest.mark.wide
@pytest.mark.parametrize(
    ("style", "mode", "queries", "layers"),
    [("gather", "none", 128, 3), ("gather", "selective", 128, 1), ("hybrid", "none", 256, 3)],
)
def test_context_ranks_keep_the_keys_that_they_gather(style, mode, queries, layers):
    # Of the last block of a sequence of 512 tokens, only the CPU kernel has a mask: in bf16, in each layer that keeps
    # its activations or is recomputed.
    mask = queries * 512 * 2
    check(DENSE, ParallelDims(dp_shard=2, cp=4), mode, style=style, left_out=layers * mask)


@pytest.mark.wide
def test_a_large_vocabulary_peaks_in_chunks_of_logits():
    check({**DENSE, "vocab_size": 65536}, DATA, "full")


@pytest.mark.wide
def test_a_critic_has_no_logits():
    check(DENSE, TENSOR, "none", critic=True)


@pytest.mark.wide
def test_a_model_of_real_sizes():
    """4,096 tokens, in layers of 13 million parameters."""
    check(
        {**DENSE, "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
        | {"num_key_value_heads": 8, "num_hidden_layers": 2},
        DATA,
        "none",
        tokens=4096,
    )
