"""The planned peak of a rank's memory is that of all tensors in a real step, and it adds up from its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.pipeline import Action, ActionKind, StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_engine.models.initialize import materialize_empty
from archon_engine.optimizer import muon
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_plan.devices import find_device
from archon_plan.memory import communicators, host_memory, rank_memory, whole_memory
from archon_plan.moments import moments
from archon_plan.results import RankMemory
from archon_plan.setting import Setting, Tokens
from archon_plan.states import held
from plan.live_storages import LiveStorages
from plan.sharded_ranks import anatomy_of, fake_rank, shard_stages
from plan.small_models import DENSE

TOKENS, SEQUENCE = 1024, 512

CLOSE = 0.005
"""Left out is what takes kilobytes, such as buffers of rotations."""

MIXTURE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "mlp_only_layers": [0],
}
LARGE_HEAD = {**DENSE, "vocab_size": 8000}
TIED = {**LARGE_HEAD, "tie_word_embeddings": True}

EIGHT = ParallelDims(dp_shard=8)
TENSOR = ParallelDims(dp_shard=4, tp=2)
HERE = replace(find_device("h100"), kind="cpu", context_bytes=0, communicator_bytes=0, allocator_share=0)
"""A device without overhead that runs a CPU's kernels."""


def setting_of(
    entries: dict[str, Any], dims: ParallelDims = EIGHT, n_micro_batches: int = 2, **options: Any
) -> Setting:
    tokens = Tokens(TOKENS, n_micro_batches=n_micro_batches, sequence=SEQUENCE)
    return Setting(anatomy_of(entries), dims, tokens, **options)


def measured(entries: dict[str, Any], setting: Setting) -> int:
    """The peak of a step's forward and backward passes on the first of eight ranks, after another micro-batch."""
    with fake_rank(0, 8):
        [stage] = shard_stages(entries, setting.dims, recompute=setting.checkpointing == "full", grouped=True)
        materialize_empty(stage.module, "cpu")
        with torch.no_grad():
            for parameter in stage.module.parameters():
                parameter.to_local().normal_(0, 0.02)
        ids = torch.arange(TOKENS) % 512
        head = HeadInputs(("logprobs",), torch.zeros(TOKENS, dtype=torch.int64))
        packed = PackedSequences.from_lengths((SEQUENCE,) * (TOKENS // SEQUENCE), head=head)
        stage.module(ids, packed)["logprobs"].sum().backward()
        for parameter in stage.module.parameters():
            parameter.grad = None
        with LiveStorages(stage.module) as live:
            for _ in range(setting.tokens.n_micro_batches):
                stage.module(ids, packed)["logprobs"].sum().backward()
        return live.peak


def by_name(memory: RankMemory) -> dict[str, float]:
    return {part.name: part.bytes for part in memory.parts}


@pytest.mark.parametrize(
    ("entries", "dims", "n_micro_batches", "checkpointing"),
    [
        pytest.param(DENSE, EIGHT, 2, "full", id="dense"),
        pytest.param(TIED, EIGHT, 2, "full", id="tied"),
        pytest.param(DENSE, EIGHT, 1, "none", id="one micro-batch", marks=pytest.mark.wide),
        pytest.param(DENSE, TENSOR, 2, "full", id="d4t2", marks=pytest.mark.wide),
        pytest.param(DENSE, TENSOR, 2, "none", id="d4t2, all kept", marks=pytest.mark.wide),
        pytest.param(LARGE_HEAD, EIGHT, 1, "full", id="large head", marks=pytest.mark.wide),
        pytest.param(MIXTURE, EIGHT, 2, "full", id="mixture", marks=pytest.mark.wide),
        pytest.param(MIXTURE, EIGHT, 2, "none", id="mixture, all kept", marks=pytest.mark.wide),
    ],
)
def test_the_peak_is_that_of_all_tensors_in_a_real_step(
    entries: dict[str, Any], dims: ParallelDims, n_micro_batches: int, checkpointing: Any
) -> None:
    setting = setting_of(entries, dims, n_micro_batches, checkpointing=checkpointing)
    memory = rank_memory(setting, 0, HERE, imbalance=1.0)
    # Plans leave out token ids, targets and positions: int64 each.
    left_out = TOKENS * 3 * 8
    # The optimizer has not stepped yet in the measured run.
    planned = memory.total - held(setting, 0).optimizer + left_out
    assert planned == pytest.approx(measured(entries, setting), rel=CLOSE)


def test_overhead_is_the_devices() -> None:
    setting = setting_of(MIXTURE, ParallelDims(pp=2, dp_replicate=2, dp_shard=2, cp=2, tp=2, ep=2))
    groups = communicators(setting)
    assert groups == (
        "world",
        "pipeline",
        "stage",
        "replicas",
        "data ranks",
        "context ranks",
        "tensor ranks",
        "replicas of experts",
        "data ranks of experts",
        "expert ranks",
    )
    device = find_device("h100")
    plain, full = rank_memory(setting_of(DENSE), 0), rank_memory(setting_of(DENSE), 0, device)
    parts = by_name(full)
    assert parts["context"] == device.context_bytes
    assert parts["communicators"] == 2 * device.communicator_bytes  # world and data ranks
    assert parts["allocator"] == pytest.approx(device.allocator_share * plain.total)
    assert full.total == pytest.approx(sum(parts.values()))


def test_buckets_of_a_publication_count_between_steps() -> None:
    setting = setting_of(DENSE)
    without = rank_memory(setting, 0)
    assert rank_memory(setting, 0, publication=1.0) == without
    found = by_name(rank_memory(setting, 0, publication=1e9))
    assert found["buckets of weights"] == 1e9
    assert "activations" not in found


def test_muon_can_need_most_in_its_update() -> None:
    entries = {**DENSE, "num_hidden_layers": 12}
    setting = setting_of(entries, ParallelDims(dp_shard=2), checkpointing="full", optimizer="muon")
    setting = replace(setting, tokens=Tokens(8, n_micro_batches=2))
    assert by_name(rank_memory(setting, 0))["buffers of the update"] > 0
    assert "buffers of the update" not in by_name(rank_memory(replace(setting, optimizer="adamw"), 0))


@pytest.mark.wide
@pytest.mark.parametrize(
    "dims", [ParallelDims(dp_shard=4), ParallelDims(dp_shard=2, tp=2), ParallelDims(dp_replicate=2, dp_shard=2)]
)
def test_muons_exchange_allocates_what_is_planned(dims: ParallelDims, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody is there to exchange matrices with; all sizes are known without others.
    monkeypatch.setattr(muon.dist, "all_to_all_single", lambda received, *_, **__: received.zero_())
    setting = setting_of({**DENSE, "num_hidden_layers": 6}, dims, optimizer="muon")
    with fake_rank(0, 4):
        [stage] = shard_stages({**DENSE, "num_hidden_layers": 6}, dims)
        materialize_empty(stage.module, "cpu")
        parameters = dict(stage.module.named_parameters())
        for parameter in parameters.values():
            parameter.detach().to_local().zero_()
            parameter.grad = torch.zeros_like(parameter)
        optimizer = NamedOptimizer(parameters, OptimizerConfig(type="muon"), total_steps=None)
        optimizer.step(0.1)
        with LiveStorages(stage.module) as live:
            optimizer.step(0.1)
    # Ranks share whole matrices, so their parts differ by up to one.
    assert moments(setting, 0)[-1].buffers == pytest.approx(live.peak - held(setting, 0).total, rel=0.03)


def test_offloaded_states_are_on_the_host() -> None:
    setting = setting_of(DENSE)
    offloaded = replace(setting, offloads=True)
    assert host_memory(setting, 0) == 0
    assert host_memory(offloaded, 0) == held(setting, 0).total
    assert rank_memory(offloaded, 0).total < rank_memory(setting, 0).total - held(setting, 0).optimizer


def test_the_first_rank_of_a_pipeline_has_more_micro_batches_in_flight() -> None:
    forward, backward = ActionKind.FORWARD, ActionKind.BACKWARD
    first = [Action(0, forward, 0), Action(0, forward, 1), Action(0, backward, 0), Action(0, backward, 1)]
    second = [Action(1, kind, number) for number in (0, 1) for kind in (forward, backward)]
    setting = setting_of({**DENSE, "num_hidden_layers": 4}, ParallelDims(pp=2, dp_shard=4), checkpointing="none")
    stages = StagePlan((Stage((0, 1), True, False), Stage((2, 3), False, True)), (0, 1))
    setting = replace(setting, stages=stages, actions=(tuple(first), tuple(second)), reshards=False)
    one, two = (by_name(memory) for memory in whole_memory(setting))
    assert one["activations"] == pytest.approx(2 * two["activations"], rel=0.05)
    layer = setting.anatomy.layers[0].size
    ends = setting.anatomy.embed[0].size
    assert one["accumulated gradients"] == 4 * (2 * layer + ends)
    assert one["unsharded weights"] == 2 * (2 * layer + ends)
