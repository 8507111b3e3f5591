"""Weights, gradients and FSDP2's buffers at the peaks of a step equal those of a real step, to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Private (2.11 to 2.13); the engine's own use is in archon_engine.compat.
from torch.utils._python_dispatch import TorchDispatchMode

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.pipeline import StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_engine.models.initialize import materialize_empty
from archon_plan.moment import Moment
from archon_plan.moments import moments
from archon_plan.setting import Setting, Tokens
from plan.sharded_ranks import Sharded, anatomy_of, fake_rank, shard_stages

TOKENS = 16

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 203,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MIXTURE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "mlp_only_layers": [],
}
MODELS = {
    "dense": DENSE,
    "tied": {**DENSE, "tie_word_embeddings": True},
    "mixture": MIXTURE,
    # Eight ranks divide the width of these experts, not their number: they are gathered into a temporary buffer first.
    "few experts": {**MIXTURE, "num_experts": 4},
    # Experts larger than the blocks around them by far.
    "large experts": {**MIXTURE, "moe_intermediate_size": 160},
}
EIGHT = ParallelDims(dp_shard=8)


class Watch(TorchDispatchMode):
    """Records, after each operation, the bytes of what a ``Moment`` counts.

    Attributes:
        seen: (gradients, accumulated, weights, reductions), without repetitions.
    """

    def __init__(self, stages: list[Sharded]) -> None:
        super().__init__()
        self._groups = [group for stage in stages for group in stage.param_groups]
        self._waiting: list[StorageWeakRef] = []
        self.seen: set[tuple[int, int, int, int]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        # Autograd itself holds the gradient of a weight that is used twice until it has both.
        makes_gradient = str(function) in ("aten._to_copy.default", "aten.embedding_dense_backward.default")
        if makes_gradient and out.dtype == torch.bfloat16 and out.shape == (203, 36):
            self._waiting.append(StorageWeakRef(out.untyped_storage()))
        self.seen.add(self._bytes(function, args, kwargs or {}))
        return out

    @property
    def peak(self) -> int:
        """The largest sum."""
        return max(map(sum, self.seen))

    def _bytes(self, function: Any, args: Any, kwargs: Any) -> tuple[int, int, int, int]:
        weights, reductions = list(self._weights()), list(self._reductions())
        name = str(function)
        if name.startswith("fsdp.split_with_sizes_copy"):
            weights += kwargs["out"]
        if name.startswith("fsdp.chunk_cat"):
            # The gradients are no longer those of the weights, and the buffer is not yet known to FSDP2.
            reductions += [*args[0], kwargs["out"]]
        parameters = [parameter for group in self._groups for parameter in group.fsdp_params]
        sharded = [p.sharded_param.grad.to_local() for p in parameters if p.sharded_param.grad is not None]
        accumulated = [p.unsharded_accumulated_grad for p in parameters if p.unsharded_accumulated_grad is not None]
        return (_stored(sharded), _stored(accumulated), _stored(weights), _stored(reductions, self._waiting))

    def _weights(self) -> Iterator[Tensor]:
        for group in self._groups:
            if group._all_gather_result is not None and group._all_gather_result.all_gather_output is not None:
                yield group._all_gather_result.all_gather_output
            for parameter in group.fsdp_params:
                yield from parameter.all_gather_outputs
        for context in self._contexts():
            if context.all_gather_state is not None:
                yield context.all_gather_state.all_gather_result.all_gather_output

    def _reductions(self) -> Iterator[Tensor]:
        for group in self._groups:
            for parameter in group.fsdp_params:
                gradient = getattr(getattr(parameter, "_unsharded_param", None), "grad", None)
                if gradient is not None:
                    yield gradient
        for context in self._contexts():
            yield from (state.reduce_scatter_input for state in context.reduce_scatter_states)

    def _contexts(self) -> list[Any]:
        contexts = {id(group.comm_ctx): group.comm_ctx for group in self._groups if hasattr(group, "comm_ctx")}
        return [context for context in contexts.values() if hasattr(context, "all_gather_state")]


def _stored(tensors: list[Tensor], others: Sequence[StorageWeakRef] = ()) -> int:
    """Bytes of the storages of ``tensors``, and of ``others`` that are alive; each counts once."""
    sizes = {other.cdata: 2 * 203 * 36 for other in others if not other.expired()}
    for tensor in tensors:
        local = tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor
        sizes[local.untyped_storage()._cdata] = local.untyped_storage().size()
    return sum(sizes.values())


def prepare(stages: list[Sharded]) -> None:
    for stage in stages:
        materialize_empty(stage.module, "cpu")
        with torch.no_grad():
            for parameter in stage.module.parameters():
                parameter.to_local().fill_(0.01)


def packed_tokens() -> tuple[Tensor, PackedSequences]:
    head = HeadInputs(outputs=("logprobs",), targets=torch.zeros(TOKENS, dtype=torch.int64))
    return torch.arange(TOKENS), PackedSequences.from_lengths((TOKENS,), head=head)


def watched_steps(entries: dict[str, Any], n_micro_batches: int, dims: ParallelDims = EIGHT, **options: Any) -> Watch:
    """One step on the first rank, after another one."""
    with fake_rank(0, dims.world_size):
        [stage] = stages = shard_stages(entries, dims, **options)
        prepare(stages)
        ids, packed = packed_tokens()
        for _ in range(2):
            for parameter in stage.module.parameters():
                parameter.grad = None
            with Watch(stages) as watch:
                for _ in range(n_micro_batches):
                    stage.module(ids, packed)["logprobs"].sum().backward()
        return watch


def peaks(setting: Setting, pipeline_rank: int = 0) -> list[Moment]:
    """The moments of a plan in which FSDP2 has a part."""
    return [moment for moment in moments(setting, pipeline_rank) if moment.name != "optimizer step"]


def as_seen(moment: Moment) -> tuple[float, ...]:
    return moment.gradients, moment.accumulated, moment.weights, moment.reductions + moment.running


def check(watch: Watch, setting: Setting, pipeline_rank: int = 0) -> None:
    planned = peaks(setting, pipeline_rank)
    for moment in planned:
        assert as_seen(moment) in watch.seen, moment
    assert max(moment.total + moment.running for moment in planned) == watch.peak


@pytest.mark.parametrize(
    ("model", "recompute"),
    [
        ("tied", False),
        ("mixture", True),
        pytest.param("dense", False, marks=pytest.mark.wide),
        pytest.param("mixture", False, marks=pytest.mark.wide),
        pytest.param("few experts", True, marks=pytest.mark.wide),
        pytest.param("large experts", False, marks=pytest.mark.wide),
    ],
)
def test_one_micro_batch_after_the_other(model: str, recompute: bool) -> None:
    setting = Setting(anatomy_of(MODELS[model]), EIGHT, Tokens(TOKENS, n_micro_batches=2))
    check(watched_steps(MODELS[model], 2, recompute=recompute), setting)


def test_one_micro_batch_has_gradients_only_of_what_is_over() -> None:
    setting = Setting(anatomy_of(DENSE), EIGHT, Tokens(TOKENS))
    check(watched_steps(DENSE, 1), setting)


@pytest.mark.wide
@pytest.mark.parametrize("model", ["dense", "mixture"])
def test_weights_that_stay_after_the_forward_pass(model: str) -> None:
    setting = Setting(anatomy_of(MODELS[model]), EIGHT, Tokens(TOKENS, n_micro_batches=2), reshards=False)
    check(watched_steps(MODELS[model], 2, reshard=False), setting)


@pytest.mark.wide
@pytest.mark.parametrize("model", ["dense", "tied"])
def test_weights_of_the_last_units_that_are_freed_too(model: str) -> None:
    tokens = Tokens(TOKENS, n_micro_batches=2)
    setting = Setting(anatomy_of(MODELS[model]), EIGHT, tokens, reshards_last=True)
    check(watched_steps(MODELS[model], 2, reshard_last=True), setting)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("model", "dims"),
    [
        ("dense", ParallelDims(tp=2)),
        ("dense", ParallelDims(dp_shard=4, tp=2)),
        ("mixture", ParallelDims(dp_replicate=2, dp_shard=4)),
        ("large experts", ParallelDims(dp_shard=8, cp=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.describe(),
)
def test_other_axes(model: str, dims: ParallelDims) -> None:
    setting = Setting(anatomy_of(MODELS[model]), dims, Tokens(TOKENS, n_micro_batches=2))
    check(watched_steps(MODELS[model], 2, dims), setting)


def pipelined(entries: dict[str, Any], **options: Any) -> Setting:
    stages = (Stage((0,), True, False), Stage((1, 2), False, True))
    setting = Setting(anatomy_of(entries), replace(EIGHT, pp=2), Tokens(TOKENS, n_micro_batches=3), reshards=False)
    return replace(setting, stages=StagePlan(stages, (0, 1)), **options)


def watched_stages(entries: dict[str, Any], setting: Setting, pipeline_rank: int) -> Watch:
    """One step of a pipeline rank's stage, after another one, as the runner of archon-pipeline does it."""
    with fake_rank(8 * pipeline_rank, 16):
        stages = shard_stages(
            entries,
            setting.dims,
            setting.held_by(pipeline_rank),
            reshard=setting.reshards,
            reshard_last=setting.reshards_last,
        )
        prepare(stages)
        [stage] = stages
        ids, packed = packed_tokens()
        for _ in range(2):
            for parameter in stage.module.parameters():
                parameter.grad = None
            with Watch(stages) as watch:
                stage.groups.accumulate()
                for _ in range(setting.tokens.n_micro_batches):
                    given = torch.ones(TOKENS, 36, dtype=torch.bfloat16, requires_grad=True)
                    out = stage.module(given if pipeline_rank else ids, packed)
                    out = out["logprobs"] if pipeline_rank else out
                    out.backward(torch.ones_like(out))
                    if setting.reduces_each:
                        stage.groups.reduce(free=stage.groups.frees_weights)
                        stage.groups.accumulate()
                stage.groups.reduce()
        return watch


@pytest.mark.parametrize(
    ("model", "pipeline_rank", "reduces_each"),
    [
        ("dense", 0, False),
        pytest.param("tied", 1, False, marks=pytest.mark.wide),
        pytest.param("tied", 0, True, marks=pytest.mark.wide),
        pytest.param("mixture", 0, False, marks=pytest.mark.wide),
        pytest.param("mixture", 1, True, marks=pytest.mark.wide),
    ],
)
def test_a_pipeline_rank(model: str, pipeline_rank: int, reduces_each: bool) -> None:
    setting = pipelined(MODELS[model], reduces_each=reduces_each)
    check(watched_stages(MODELS[model], setting, pipeline_rank), setting, pipeline_rank)


@pytest.mark.parametrize("model", ["dense", pytest.param("few experts", marks=pytest.mark.wide)])
def test_forward_passes_without_gradients(model: str) -> None:
    setting = Setting(anatomy_of(MODELS[model]), EIGHT, Tokens(TOKENS), trains=False)
    with fake_rank(0, 8):
        [stage] = stages = shard_stages(MODELS[model], EIGHT)
        prepare(stages)
        ids, packed = packed_tokens()
        for _ in range(2):
            with Watch(stages) as watch, torch.no_grad():
                stage.module(ids, packed)
            stage.groups.end_forward_passes()
    check(watch, setting)
