"""Speed and capacity of servers: hand-computed bytes, and limits of the formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import HeadCounts
from archon_plan.devices import find_device
from archon_plan.server import Rates, Server, rates_of

HIDDEN, VOCABULARY, INNER, EXPERTS = 8, 32, 4, 16
ATTENTION = AttentionAnatomy(HeadCounts(4, 2), head_dim=4, value_dim=4)


def weight(name: str, *shape: int, role: str = "column", dim: int | None = 0) -> WeightShape:
    return WeightShape(name, shape, role, dim)  # type: ignore[arg-type]


DENSE = LayerAnatomy(
    (weight("attention.q_proj.weight", 16, HIDDEN), weight("norm.weight", HIDDEN, role="sequence", dim=None)),
    ATTENTION,
)
SPARSE = LayerAnatomy(
    (*DENSE.weights, weight("moe.experts.up_proj", EXPERTS, INNER, HIDDEN, role="expert", dim=1)),
    ATTENTION,
    experts=ExpertsAnatomy(EXPERTS, top_k=2, intermediate_size=INNER),
)
EMBED = (weight("embed.weight", VOCABULARY, HIDDEN, role="vocabulary"),)
HEAD = (weight("head.weight", VOCABULARY, HIDDEN, role="vocabulary"),)
MODEL = ModelAnatomy(HIDDEN, VOCABULARY, EMBED, (DENSE, SPARSE), HEAD)

RATES = Rates(memory=1e6, bandwidth=1e3, flops=1e9)


def test_a_device_holds_its_share_of_the_weights_and_of_the_kv_cache() -> None:
    whole = 2 * MODEL.n_parameters
    assert Server(MODEL).weights == whole
    halves = Server(MODEL, tensor=2)
    norms = 2 * 2 * HIDDEN
    assert halves.weights == (whole - norms) / 2 + norms, "norms are replicated"
    # Two layers, two KV heads, keys and values of 4 numbers of 2 bytes.
    assert Server(MODEL).cached(1, 1) == 2 * 2 * (4 + 4) * 2
    assert halves.cached(1, 1) == 2 * 1 * (4 + 4) * 2
    assert Server(MODEL, tensor=4).cached(1, 1) == halves.cached(1, 1), "ranks beyond the KV heads hold copies"
    assert Server(MODEL, pipeline=2).cached(1, 1) == Server(MODEL).cached(1, 1) / 2


def test_a_window_limits_the_cache_of_each_sequence() -> None:
    windowed = replace(DENSE, attention=replace(ATTENTION, window=10))
    server = Server(replace(MODEL, layers=(DENSE, windowed)))
    per_layer = 2 * (4 + 4) * 2
    assert server.cached(100, 5) == per_layer * 100 + per_layer * 50
    assert server.cached(30, 5) == per_layer * 30 * 2


def test_a_step_reads_the_experts_that_its_tokens_meet_and_no_embedding() -> None:
    server = Server(MODEL)
    routed, head = EXPERTS * INNER * HIDDEN, VOCABULARY * HIDDEN
    dense = sum(one.size for one in DENSE.weights) * 2 + head
    assert server.read_weights(1) == pytest.approx(2 * (dense + routed * 2 / 16))
    assert server.read_weights(2) == pytest.approx(2 * (dense + routed * (1 - (14 / 16) ** 2)))
    assert server.read_weights(10_000) == pytest.approx(2 * (dense + routed))
    tied = Server(replace(MODEL, last=(), tied=True))
    assert tied.read_weights(1) == pytest.approx(server.read_weights(1)), "a tied head reads the embedding"


def test_decoding_is_limited_by_memory_and_then_by_products() -> None:
    server = Server(MODEL)
    slow_memory = server.decode_seconds(RATES, 4, 400)
    assert slow_memory == pytest.approx((server.read_weights(4) + 400 * server.cached(1, 1)) / 1e3)
    slow_products = replace(RATES, flops=1.0)
    assert server.decode_seconds(slow_products, 4, 400) == pytest.approx(4 * server.flops_per_token)
    # Two experts of sixteen, and the head: two operations per weight of a matrix.
    met = 2 * 16 * HIDDEN + EXPERTS * INNER * HIDDEN / 8 + VOCABULARY * HIDDEN
    assert server.flops_per_token == pytest.approx(2 * met)


def test_without_cuda_graphs_the_host_limits_small_batches() -> None:
    launching = replace(RATES, launch=0.1)
    assert Server(MODEL, launches=30).decode_seconds(launching, 1, 100) == pytest.approx(
        max(3.0, Server(MODEL).decode_seconds(launching, 1, 100))
    )
    assert Server(MODEL, launches=300).decode_seconds(launching, 1, 100) == pytest.approx(30.0)


def test_a_pipeline_speeds_up_the_cache_and_not_the_weights() -> None:
    """Ranks of a pipeline run one group of sequences each, so all weights are read for every group."""
    one, two = Server(replace(MODEL, layers=(DENSE,) * 4)), Server(replace(MODEL, layers=(DENSE,) * 4), pipeline=2)
    assert two.read_weights(8) == one.read_weights(8)
    assert two.cached(800, 8) == one.cached(800, 8) / 2


def test_tensor_ranks_exchange_two_all_reduces_per_layer() -> None:
    linked = replace(RATES, link_latency=0.5, link_bandwidth=100.0)
    # Two layers with two all-reduces each: six messages of a ring of four, each a quarter of 3 x 8 numbers of 2 bytes.
    assert Server(MODEL, tensor=4).exchange_seconds(linked, 3) == pytest.approx(
        4 * 6 * (0.5 + 3 * HIDDEN * 2 / 4 / 100)
    )
    assert Server(MODEL).exchange_seconds(linked, 3) == 0


def test_prefilling_counts_causal_attention_once() -> None:
    server = Server(replace(MODEL, layers=(DENSE,)))
    # Half of 100 x 100 pairs; 4 heads with 4 + 4 numbers, a multiplication and an addition each.
    assert server.attention_flops(100) == 2 * 4 * (4 + 4) * 100 * 100 / 2
    expected = 3 * (100 * 2 * 16 * HIDDEN + 2 * VOCABULARY * HIDDEN + server.attention_flops(100))
    assert server.prefill_seconds(RATES, 3, 100) == pytest.approx(expected / 1e9)


def test_memory_limits_the_sequences_that_run_together() -> None:
    server = Server(MODEL, memory_share=0.5, reserved=1e4)
    free = 0.5e6 - 1e4 - server.weights
    assert server.capacity(RATES) == free
    assert server.most_sequences(RATES, 10) == int(free / (10 * server.cached(1, 1)))
    assert replace(server, max_sequences=3).most_sequences(RATES, 10) == 3
    assert server.most_sequences(replace(RATES, memory=100.0), 10) == 0


def test_a_server_over_nodes_exchanges_over_the_network() -> None:
    device = find_device("h100")
    assert rates_of(device, 8).link_bandwidth == device.node_bandwidth * device.efficiency.node
    assert rates_of(device, 16).link_bandwidth == device.network_bandwidth * device.efficiency.network
