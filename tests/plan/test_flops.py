"""The FLOPs of a plan against torch's flop counter around a real step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # torch's way to write such counters
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import AttentionAnatomy, DeltaNetAnatomy, ModelAnatomy
from archon_core.models.parallel_plan import HeadCounts
from archon_core.plugins import ModelSpec
from archon_engine.nn import head
from archon_engine.nn.delta_rule.chunks import CHUNK
from archon_engine.nn.delta_rule.rule import gated_delta_rule
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_moe.kernels.operation import grouped_experts  # noqa: F401, registers torch.ops.archon_moe
from archon_pipeline.stage_passes import StagePasses
from archon_plan.flops import Work, delta_flops, layer_passes, stage_work
from archon_plan.setting import Setting, Tokens
from archon_plan.sizes import sizes_of
from archon_plan.timing import model_flops

LENGTH = 24
N_SEQUENCES = 2

DENSE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}
MOE = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
}
LATENT = {
    "model_type": "deepseek_v3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "vocab_size": 64,
}
TIED = DENSE | {"tie_word_embeddings": True}

ATEN = torch.ops.aten
NOT_COUNTED_BY_TORCH = {
    ATEN.addmm_: lambda total, a, b, out_shape=None, **options: 2 * a[0] * a[1] * b[1],
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, out_shape=None, **options: sdpa_flop_count(
        q, _with_heads(k, q), _with_heads(v, q)
    ),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *rest, out_shape=None, **options: sdpa_backward_flop_count(
            grad, q, _with_heads(k, q), _with_heads(v, q)
        )
    ),
}
"""Formulas of torch's counter for forms of operations that it leaves out: in place, and on a CPU."""


def _of_pairs(x, weights, gate, up, down, pairs, *rest, out_shape=None, **options) -> int:
    """Three products of every pair of a token and one of its experts."""
    return 2 * pairs[0] * 3 * gate[1] * gate[2]


@pytest.fixture(autouse=True)
def head_computes_logits_again(monkeypatch):
    """As on devices, and on CPUs with several chunks."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)


def _with_heads(keys: tuple[int, ...], queries: tuple[int, ...]) -> tuple[int, ...]:
    """The counter's formulas know no grouped heads."""
    return keys[0], queries[1], *keys[2:]


class ProductCounter(TorchDispatchMode):
    """Counts FLOPs of matrix products. torch's counter follows modules by hooks, with which autograd cannot compute
    the gradient of one input alone through a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in (ATEN.mm, ATEN.addmm):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


def anatomy_of(model: dict[str, Any]) -> ModelAnatomy:
    return registry().get(ModelSpec, model["model_type"]).load_part("anatomy")(model)


def counted(model: dict[str, Any], ac_mode: str, option: str = "op") -> dict[str, float]:
    """FLOPs of one micro-batch: ``products`` of matrices, and ``attention``, in which the counter ignores causality."""
    formulas = NOT_COUNTED_BY_TORCH | (
        {torch.ops.archon_moe.grouped_experts: _of_pairs} if "moe_intermediate_size" in model else {}
    )
    engine, micro_batch = started(model, ac_mode, option)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        engine._running.runner.train([micro_batch], lambda outputs, _: -outputs["logprobs"].sum())
    engine.close()
    found = {"products": 0.0, "attention": 0.0}
    for name, flops in counter.get_flop_counts()["Global"].items():
        found["attention" if "attention" in str(name) else "products"] += flops
    return found


def started(model: dict[str, Any], ac_mode: str, option: str = "op") -> tuple[Any, MicroBatch]:
    """An engine on one process, and a micro-batch for it."""
    config = ArchonEngineConfig(
        model_config=model,
        dtype="float32",
        gradient_checkpointing=ac_mode != "none",
        mb_spec=MicroBatchSpec(n_mbs=1),
        optimizer=OptimizerConfig(),
        archon=ArchonOptions(enable_compile=False, ac_mode=ac_mode, selective_ac_option=option, attn_type="sdpa"),
    )
    engine = assemble(config, role="actor", layout=parse_layout("archon:d1"), seed=1, total_steps=None)
    engine.initialize()
    ids = torch.arange(LENGTH) % model["vocab_size"]
    batch = Batch.from_sequences([ids] * N_SEQUENCES)
    [micro_batch] = engine._running.split.build(batch, [list(range(N_SEQUENCES))], OutputRequest(), 1)
    return engine, micro_batch


def planned(model: dict[str, Any], ac_mode: str, every: int | None = None) -> Work:
    """All work of one micro-batch."""
    setting = Setting(
        anatomy_of(model),
        ParallelDims(),
        Tokens(LENGTH * N_SEQUENCES, 1, LENGTH),
        checkpointing=ac_mode,  # type: ignore[arg-type]
        every=every,
    )
    total = Work()
    for count, passes in stage_work(setting, setting.stage_plan.stages[0]):
        for part in (passes.forward, passes.recompute, passes.backward_input, passes.backward_weight):
            total += part * count
    return total


MODELS = {"dense": DENSE, "moe": MOE, "tied": TIED, "latent": LATENT}
QUICK = [("dense", "full", "op"), ("moe", "full", "op"), ("latent", "full", "op")]
ALL = [
    (model, mode, option)
    for model in MODELS
    for mode, option in (("none", "op"), ("selective", "op"), ("selective", "2"), ("full", "op"))
]


@pytest.mark.parametrize(
    ("model", "ac_mode", "option"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.wide) for case in ALL if case not in QUICK)],
)
def test_products_equal_those_that_torch_counts(model, ac_mode, option):
    found = counted(MODELS[model], ac_mode, option)
    plan = planned(MODELS[model], ac_mode, None if option == "op" else int(option))
    assert plan.dense + plan.router + plan.grouped + plan.head == found["products"]


def test_a_cpu_does_not_compute_a_single_chunk_of_logits_again(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", 2**20)
    plan = planned(DENSE, "none")
    assert plan.dense + plan.head * 3 / 4 == counted(DENSE, "none")["products"]


def test_gated_delta_net_equals_what_torch_counts_but_for_triangular_systems():
    n_tokens, key_heads, heads, key, value = 2 * CHUNK, 2, 4, 16, 8
    of_keys, of_values, of_heads = (torch.rand(n_tokens, *s) for s in ((key_heads, key), (heads, value), (heads,)))
    with FlopCounterMode(display=False) as counter:
        gated_delta_rule(of_keys, of_keys, of_values, -of_heads, of_heads, (n_tokens,))
    attention = AttentionAnatomy(HeadCounts(heads, key_heads), key, value, delta=DeltaNetAnatomy(4))
    systems = heads * CHUNK * (key + value)
    assert counter.get_total_flops() == n_tokens * (delta_flops(attention, n_tokens) - systems)


@pytest.mark.parametrize("model", [DENSE, LATENT], ids=["dense", "latent"])
def test_attention_equals_what_torch_counts_but_for_causality(model):
    found = counted(model, "full")
    # The counter takes all pairs of queries and keys; half of them, with the diagonal, are computed.
    assert planned(model, "full").attention == pytest.approx(
        found["attention"] * (LENGTH + 1) / (2 * LENGTH), rel=1e-12
    )


def test_model_flops_are_six_per_weight_and_token_and_leave_out_what_is_recomputed():
    anatomy = anatomy_of(DENSE)
    tokens = Tokens(LENGTH, 3, LENGTH)
    matrices = sum(w.size for layer in anatomy.layers for w in layer.weights if len(w.shape) == 2)
    matrices += anatomy.vocab_size * anatomy.hidden_size
    scores = 3 * 4 * 2 * 8 * LENGTH * (LENGTH + 1) / 2  # layers, heads, two products, size of a head
    for mode in ("none", "full"):
        setting = Setting(anatomy, ParallelDims(dp_shard=2), tokens, checkpointing=mode)
        per_micro_batch = 6 * LENGTH * matrices + 3 * 2 * scores
        assert model_flops(setting) == pytest.approx(2 * 3 * per_micro_batch, rel=1e-12)


def test_each_half_of_a_split_backward_pass_recomputes_a_checkpointed_block_once():
    engine, micro_batch = started(DENSE, "full")
    module = engine.module
    blocks = [[*layer.parameters()] for layer in module.layers.values()]
    groups: Any = SimpleNamespace(
        whole_parameters=[weight for block in blocks for weight in block],
        weights_in_turn=lambda: reversed(blocks),
        widen=lambda: None,
    )
    passes = StagePasses(_Blocks(module), groups, is_first=False, is_last=False)
    x, gradient = (torch.randn(LENGTH * N_SEQUENCES, DENSE["hidden_size"]) for _ in range(2))
    passes.forward(0, x, micro_batch, None)  # type: ignore[arg-type]
    with ProductCounter() as inputs:
        passes.backward_input(0, gradient)
    with ProductCounter() as gradients:
        passes.backward_weight(0)
    anatomy = anatomy_of(DENSE)
    setting = Setting(anatomy, ParallelDims(), Tokens(LENGTH * N_SEQUENCES, 1, LENGTH), checkpointing="full")
    planned = layer_passes(setting, sizes_of(anatomy).kinds[0], 1.0)
    assert inputs.flops == 3 * (planned.backward_input.dense + planned.recompute.dense)
    assert gradients.flops == 3 * (planned.backward_weight.dense + planned.recompute.dense)
    engine.close()


class _Blocks(torch.nn.Module):
    """The layers of a model, as a stage in the middle of a pipeline."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers, self.rotary = model.layers, model.rotary

    def forward(self, x: torch.Tensor, packed: Any) -> torch.Tensor:
        rotation = self.rotary(packed, x.dtype)
        for layer in self.layers.values():
            x = layer(x, rotation, packed)
        return x
