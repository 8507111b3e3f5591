"""Parameters, gradients and optimizer states of a plan equal what the engine's code makes on ranks of a world of 1,024,
to the byte. Sizes do not divide, so that shards are unequal."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.contracts.pipeline import StagePlan
from archon_core.errors import ConfigError
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_engine.models.initialize import materialize_empty
from archon_engine.optimizer import muon
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.parallel.shards import local_values
from archon_plan.holdings import holdings
from archon_plan.setting import Setting, Tokens, Types
from archon_plan.states import held, state_parts
from plan.sharded_ranks import anatomy_of, fake_rank, shard_stages

WORLD = 1024

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 1003,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MIXTURE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "mlp_only_layers": [0],
}
GEMMA2 = {**DENSE, "model_type": "gemma2", "num_key_value_heads": 4, "tie_word_embeddings": True}
PHI3 = {**DENSE, "model_type": "phi3", "pad_token_id": None}
TIED = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Case:
    """A model on a layout.

    Attributes:
        entries: of its ``config.json``.
        dims: of 1,024 ranks, or close to it.
        ranks: which of them are compared.
        stages: the layers of each stage; empty without a pipeline.
        rank_of: the pipeline rank of each stage.
        critic: whether the model has a value head.
        model: name of the spec; ``None`` for the one named like the family.
    """

    entries: dict[str, Any]
    dims: ParallelDims
    ranks: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...] = ()
    rank_of: tuple[int, ...] = ()
    critic: bool = False
    model: str | None = None

    @property
    def setting(self) -> Setting:
        last = len(self.stages) - 1
        plan = StagePlan(
            tuple(Stage(layers, number == 0, number == last) for number, layers in enumerate(self.stages)), self.rank_of
        )
        anatomy = anatomy_of(self.entries, model=self.model, critic=self.critic)
        return Setting(anatomy, self.dims, Tokens(512), stages=plan if self.stages else None)


CASES = {
    # 1,003 rows over 4 tensor ranks, then over 256 data ranks, of which the last hold none.
    "d256t4": Case(DENSE, ParallelDims(dp_shard=256, tp=4), (0, 3, 1003)),
    # Experts over 8 ranks of 2 expert tensor ranks: dim 0 is left with one, and 4 data ranks divide dim 1.
    "r8d8p2c2t4-e8": Case(
        {**MIXTURE, "num_experts": 8, "moe_intermediate_size": 24},
        ParallelDims(pp=2, dp_replicate=8, dp_shard=8, cp=2, tp=4, ep=8, etp=2),
        (0, 1023),
        ((0,), (1, 2)),
        (0, 1),
    ),
}
WIDE = {
    "d1024": Case({**DENSE, **TIED}, ParallelDims(dp_shard=1024), (0, 511, 1023)),
    "r2d32c2t8": Case(DENSE, ParallelDims(dp_replicate=2, dp_shard=32, cp=2, tp=8), (0, 7, 9, 500, 1023)),
    "critic": Case({**DENSE, **TIED}, ParallelDims(dp_shard=128, tp=8), (0, 1, 1023), critic=True),
    "biased": Case({**DENSE, "model_type": "qwen2"}, ParallelDims(dp_shard=256, tp=4), (0, 5, 1022)),
    "gemma2": Case(GEMMA2, ParallelDims(dp_shard=256, tp=4), (0, 2, 1003), model="hf"),
    "phi3": Case(
        {**DENSE, "model_type": "phi3", "pad_token_id": None},
        ParallelDims(dp_shard=512, tp=2),
        (0, 1, 1023),
        model="hf",
    ),
    "tied over a pipeline": Case(
        {**DENSE, **TIED},
        ParallelDims(pp=4, dp_shard=64, tp=4),
        (0, 255, 256, 768, 1023),
        ((0,), (1,), (2,), ()),
        (0, 1, 2, 3),
    ),
    "tied in a V": Case(
        {**DENSE, **TIED},
        ParallelDims(pp=2, dp_shard=128, tp=4),
        (0, 511, 512, 1023),
        ((), (0,), (1,), (2,)),
        (0, 1, 1, 0),
    ),
    # 512 data ranks divide no dim of the 3 experts on each of 2 expert ranks.
    "d1024-e2": Case(MIXTURE, ParallelDims(dp_shard=1024, ep=2), (0, 1, 4, 6, 1023)),
    "r2d128t4-e3x4": Case(
        {**MIXTURE, "num_experts": 12},
        ParallelDims(dp_replicate=2, dp_shard=96, tp=4, ep=3, etp=4),
        (0, 5, 700, 767),
    ),
    "c16t8-e1": Case(MIXTURE, ParallelDims(dp_shard=8, cp=16, tp=8), (0, 77, 1023)),
}


def check(case: Case, name: str) -> None:
    setting, dims = case.setting, case.dims
    for rank in case.ranks:
        pipeline_rank, place = divmod(rank, dims.stage_size)
        with fake_rank(rank, dims.world_size):
            stages = shard_stages(
                case.entries,
                dims,
                setting.held_by(pipeline_rank) if case.stages else (None,),
                model=case.model,
                critic=case.critic,
            )
        planned = held(setting, pipeline_rank, place)
        assert planned.parameters == 4 * sum(stage.stored for stage in stages), (name, rank)
        assert planned.gradients == planned.parameters
        found = sum(holding.count * holding.on(place) for holding in holdings(setting, pipeline_rank))
        assert found == sum(stage.elements for stage in stages), (name, rank)
        assert planned.parameters <= held(setting, pipeline_rank).parameters


@pytest.mark.parametrize("name", CASES)
def test_a_rank_holds_what_the_engine_gives_it(name: str) -> None:
    check(CASES[name], name)


@pytest.mark.wide
@pytest.mark.parametrize("name", WIDE)
def test_any_rank_of_any_layout_holds_what_the_engine_gives_it(name: str) -> None:
    check(WIDE[name], name)


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.wide) for name in WIDE)])
def test_holdings_add_up_to_the_weights_over_all_ranks(name: str) -> None:
    case = (CASES | WIDE)[name]
    setting, dims = case.setting, case.dims
    for pipeline_rank in range(dims.pp):
        for holding in holdings(setting, pipeline_rank):
            counts = Counter(holding.on(rank) for rank in range(dims.stage_size))
            assert holding.ranks == counts, holding
            assert list(holding.ranks) == sorted(counts, reverse=True)
            assert sum(elements * ranks for elements, ranks in counts.items()) == holding.copies * holding.weight.size


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("adamw", 0.9), ("adam", 0.9), ("sgd", 0.9), ("sgd", 0.0), ("muon", 0.9)]
)
@pytest.mark.parametrize("rank", [0, 1003])
def test_an_optimizer_has_the_states_of_the_engine(optimizer: str, momentum: float, rank: int, monkeypatch) -> None:
    # Nobody is there to exchange matrices with; momentum does not depend on the exchange.
    monkeypatch.setattr(muon, "orthogonalise_all", lambda updates, *_: [local_values(u) for u in updates])
    case = CASES["d256t4"]
    config = OptimizerConfig(type=optimizer, beta1=momentum)
    with fake_rank(rank, WORLD):
        [stage] = shard_stages(case.entries, case.dims)
        materialize_empty(stage.module, "cpu")
        parameters = dict(stage.module.named_parameters())
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        engine = NamedOptimizer(parameters, config, total_steps=None)
        engine.step(0.1)
        states = [local_values(value) for state in engine.states() for value in state.values()]
    setting = replace(case.setting, optimizer=optimizer, momentum=bool(momentum))
    assert held(setting, 0, rank).optimizer == sum(state.numel() * state.itemsize for state in states)


def test_a_reference_model_has_neither_gradients_nor_states() -> None:
    setting = replace(CASES["d256t4"].setting, trains=False, types=Types(compute=2, master=2))
    found = {part.name: part.bytes for part in state_parts(setting, 0)}
    assert found.keys() == {"parameters", "unsharded weights"}
    assert found["parameters"] == held(CASES["d256t4"].setting, 0).parameters / 2


def test_offloaded_states_are_not_on_the_device() -> None:
    setting = replace(CASES["d256t4"].setting, offloads=True)
    found = {part.name: part.bytes for part in state_parts(setting, 0)}
    assert found.keys() == {"unsharded weights", "gradients being reduced"}


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 'lion'; allowed are adam, adamw, sgd and muon"):
        held(replace(CASES["d256t4"].setting, optimizer="lion"), 0)


def test_the_states_of_a_large_model_on_a_thousand_ranks_follow_from_its_size() -> None:
    anatomy = anatomy_of(json.loads((Path(__file__).parents[1] / "data/qwen3-30b-a3b.json").read_text()))
    assert anatomy.n_parameters == 30_532_122_624
    # Rows that 1,024 ranks do not divide are padded: 151,936 of embedding and head, 512 of key and value projections,
    # 128 of routers and head norms. Of the experts, the last dim is divided.
    per_layer = 2 * (1024 - 512) * 2048 + (1024 - 128) * 2048 + 2 * (1024 - 128)
    padding = 48 * per_layer + 2 * (149 * 1024 - 151_936) * 2048
    found = held(Setting(anatomy, ParallelDims(dp_shard=1024), Tokens(4096)), 0)
    assert 1024 * found.parameters == 4 * (anatomy.n_parameters + padding)
