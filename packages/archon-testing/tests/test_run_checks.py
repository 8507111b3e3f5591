"""What a run shows by itself, without a reference: its first step, the type of its sums, its export."""

import pytest
import torch

from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.models.box import Box
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Rename, Stack
from archon_testing.exports import expected_export, export_errors, parameters_in
from archon_testing.held_shards import HeldShard
from archon_testing.precision import rounded_sums
from archon_testing.update_rule import wrong_updates

OPTIMIZER = OptimizerConfig(type="adamw", lr=1e-2, weight_decay=0.1, eps=1e-3)
RATE = 5e-3


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def step_of_torch(weights, gradients, decay_of):
    """Weights after a step of torch's AdamW; ``decay_of`` gives each parameter's weight decay."""
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
    groups = [{"params": [p], "weight_decay": decay_of(p)} for p in parameters.values()]
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    torch.optim.AdamW(groups, lr=RATE, eps=OPTIMIZER.eps, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2)).step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("decay_of", "words"),
    [
        (lambda p: 0.1 if p.ndim >= 2 else 0.0, None),
        (lambda p: 0.1, "applies weight decay, which vectors do not have, to norm.weight"),
        (lambda p: 0.0, "leaves out weight decay, which matrices have, for 2 weights, such as embed.weight"),
        (lambda p: 0.3 if p.ndim >= 2 else 0.0, "with another factor than optimizer.weight_decay to 2 weights"),
    ],
)
def test_a_first_step_is_held_against_adamw_and_its_decay_is_named(dtype, decay_of, words):
    weights = {"embed.weight": drawn(5, 4), "head.weight": drawn(4, 3, seed=1), "norm.weight": 1 + drawn(4, seed=2)}
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    gradients = {name: 1e-3 * torch.randn_like(weight) for name, weight in weights.items()}
    after = step_of_torch(weights, gradients, decay_of)
    shards = [{name: HeldShard.whole(t) for name, t in tensors.items()} for tensors in (weights, gradients, after)]
    found = wrong_updates(*shards, learning_rate=RATE, optimizer=OPTIMIZER)
    assert len(found) == (words is not None)
    assert all(words in sentence for sentence in found)
    [other] = wrong_updates(*shards, learning_rate=2 * RATE, optimizer=OPTIMIZER)[-1:]
    assert "otherwise than AdamW" in other


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_sums_in_float32_are_told_from_sums_that_were_rounded_to_bfloat16(n_ranks):
    parts = [drawn(30, 20, seed=rank).to(torch.bfloat16).float() for rank in range(n_ranks)]
    whole = sum(parts)

    def said(tensor, **sums):
        gradients = {"layers.0.mlp.weight": HeldShard.whole(tensor), "embed.weight": HeldShard.whole(parts[0])}
        return list(rounded_sums(gradients, **{"dense": True, "experts": True, "vectors": True, **sums}))

    assert said(whole) == []
    assert said(whole.to(torch.bfloat16).float()) == [
        "gradients of layers' matrices are summed in bfloat16: 100% of the sums are bfloat16 numbers"
    ]
    assert said(parts[0], dense=False) == []
    stacked = {"layers.1.moe.experts.down_proj": HeldShard.whole(parts[0].reshape(3, 10, 20))}
    assert ["experts" in text for text in rounded_sums(stacked, dense=True, experts=True, vectors=True)] == [True]
    assert list(rounded_sums(stacked, dense=True, experts=True, vectors=True, least=lambda share: share / 3)) == [], (
        "experts of other ranks have sums"
    )
    few = {"layers.0.norm.weight": HeldShard.whole(parts[0][0])}
    assert list(rounded_sums(few, dense=True, experts=True, vectors=True)) == []
    norms = {f"layers.{layer}.norm.weight": HeldShard.whole(row) for layer, row in enumerate(parts[0])}
    assert ["norms" in text for text in rounded_sums(norms, dense=True, experts=True, vectors=True)] == [True]
    assert list(rounded_sums(norms, dense=True, experts=True, vectors=False)) == []
    biases = {name.replace("weight", "bias"): shard for name, shard in norms.items()}
    assert list(rounded_sums(biases, dense=True, experts=True, vectors=True)) == []


def weight_map():
    rules = (Rename("model.embed.weight", "embed.weight"), Stack("experts.{e}.weight", "experts.weight", "e"))
    return WeightMap(rules).resolve({"embed.weight": (4, 2), "experts.weight": (3, 2, 2)})


def test_each_rank_finds_its_own_part_of_an_export():
    weights = weight_map()
    embed, experts = drawn(4, 2), drawn(3, 2, 2)
    files = {"model.embed.weight": embed.clone(), **{f"experts.{e}.weight": experts[e].clone() for e in range(3)}}
    ranks = [
        {
            "embed.weight": HeldShard(embed[2 * r : 2 * r + 2], Box((2 * r, 0), (2, 2)), (4, 2)),
            "experts.weight": HeldShard(experts[:, r : r + 1], Box((0, r, 0), (3, 1, 2)), (3, 2, 2)),
        }
        for r in range(2)
    ]
    for own in ranks:
        errors, problems = export_errors(files, own, weights)
        assert (errors, problems) == (dict.fromkeys(weights.hf_shapes, 0.0), [])
    assert torch.equal(expected_export("experts.1.weight", ranks, weights), experts[1])
    assert parameters_in("experts.1.weight", weights) == {"experts.weight"}

    files["model.embed.weight"][3] += 1.0
    files["experts.1.weight"][0, 0] = torch.nan
    wrong = [{name for name, error in export_errors(files, own, weights)[0].items() if error} for own in ranks]
    assert wrong == [{"experts.1.weight"}, {"model.embed.weight"}]


def test_an_export_with_other_names_or_shapes_is_a_problem():
    files = {"model.embed.weight": drawn(2, 4), "experts.0.weight": drawn(2, 2), "experts.1.weight": drawn(2, 2)}
    _, problems = export_errors({**files, "more.weight": drawn(1)}, {}, weight_map())
    assert problems == [
        "the export lacks experts.2.weight",
        "the export has more.weight, which the model lacks",
        "the export's model.embed.weight has shape [2, 4], not [4, 2]",
    ]
