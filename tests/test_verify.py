"""A layout changes no number: Qwen on every layout of this version, held against one process.

And the evidence is worth something: mistakes that are planted into the engine are found in the right quantity.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.distributed.tensor import DTensor

from archon_core.cli.main import main
from archon_core.engine import grad_norm, step
from archon_core.nn import norm
from archon_core.plugins import ModelSpec, registry
from archon_core.plugins.specs import load_target
from archon_testing import verdicts
from archon_testing.cases import choose_variants, variant_case
from archon_testing.oracle import Oracle
from archon_testing.oracle_ranks import RECORD, compute_references
from archon_testing.worlds import run_world

MODELS = ("qwen2", "qwen3")
EVERYTHING = ("d2", "t2", "d2t2")
"""Layouts that run every variant with every number of micro-batches."""
LARGER = ("d4", "t4", "d4t2")
"""Layouts of more ranks along the same axes, which run every variant and every number of micro-batches once."""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """What one process computes is computed once for all layouts."""
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def config_of(model):
    """Two layers have all that sharding over data and tensor ranks can get wrong: a first, a last, and a next one."""
    return {**load_target(registry().get(ModelSpec, model).tiny_config)(), "num_hidden_layers": 2}


def cases_of(model, layout):
    """In float32, whose reductions take other paths, each variant once."""
    variants = choose_variants(registry().get(ModelSpec, model), [])
    square = list(zip(variants, (1, 2, 4), strict=True))
    pairs = list(product(variants, (1, 2, 4))) if layout in EVERYTHING else square
    return [
        variant_case(config_of(model), variant, layout=f"archon:{layout}", n_mbs=n_mbs, dtype=dtype)
        for dtype, chosen in (("float64", pairs), ("float32", square))
        for variant, n_mbs in chosen
    ]


def describe(verdict):
    case, comparison = verdict.case, verdict.comparison
    tied = case.model_config["tie_word_embeddings"]
    name = f"{case.dtype} {'critic' if case.critic else 'tied' if tied else 'untied'} n_mbs={case.n_mbs}"
    if comparison is None:
        return f"{name}: {verdict.refusal}"
    errors = [f"{quantity} {comparison.worst[quantity]}" for quantity in comparison.failed]
    return f"{name}: {'; '.join([*errors, *comparison.problems])}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*EVERYTHING, *LARGER])
@pytest.mark.parametrize("model", MODELS)
def test_a_layout_gives_the_numbers_of_one_process(oracle, model, layout):
    assert [describe(verdict) for verdict in oracle.verify(cases_of(model, layout)) if not verdict.passed] == []


def leave_norms_unsummed_over_tensor_ranks():
    """Their gradient is taken for one that every rank has whole, as it would be without sequence sharding."""
    norm.local_weight = lambda weight: weight.to_local() if isinstance(weight, DTensor) else weight


def take_the_norm_over_data_ranks_only():
    sharded_axes = grad_norm._sharded_axes

    def of_data_ranks(gradient):
        mesh, axes = sharded_axes(gradient)
        return mesh, tuple(axis for axis in axes if mesh.mesh_dim_names[axis] == "dp_shard_cp")

    grad_norm._sharded_axes = of_data_ranks


def divide_losses_by_each_ranks_own_weight():
    """And average over ranks, as distributed data parallelism does."""
    agree = step.agree

    def own(share, ranks):
        whole = agree(share, ranks)
        own_weights = {unit: weight * ranks.size for unit, weight in share.weights.items()}
        return replace(whole, weights=own_weights or whole.weights)

    step.agree = own


def planted(oracle, layout, plant):
    [verdict] = oracle.verify([variant_case(config_of("qwen3"), "untied", layout=f"archon:{layout}")], before=plant)
    assert not verdict.passed
    return verdict.comparison


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["t2", "d2t2"])
def test_a_replicated_gradient_that_is_not_summed_over_tensor_ranks_is_found(oracle, layout):
    comparison = planted(oracle, layout, leave_norms_unsummed_over_tensor_ranks)
    assert "gradients" in comparison.failed
    assert comparison.worst["gradients"].name.endswith("norm.weight")
    assert comparison.worst["gradients"].error > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["t2", "d2t2"])
def test_a_clip_norm_over_data_ranks_only_is_found(oracle, layout):
    comparison = planted(oracle, layout, take_the_norm_over_data_ranks_only)
    assert {"gradient norm", "weights"} <= set(comparison.failed)
    assert any("ranks report different values of gradient norm" in problem for problem in comparison.problems)


@pytest.mark.slow
def test_a_loss_that_each_rank_divides_by_its_own_weight_is_found(oracle):
    comparison = planted(oracle, "d2", divide_losses_by_each_ranks_own_weight)
    assert {"loss", "gradients", "gradient norm"} <= set(comparison.failed)
    assert comparison.problems == ()


def run_command(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments, "--variant", "untied", "--dtype", "float64", "--micro-batches", "2"])
    return exit_.value.code


@pytest.mark.slow
def test_the_command_exits_with_0_when_all_layouts_agree(capsys):
    assert run_command("qwen3", "--layout", "d2", "--layout", "archon:d2") == 0
    printed = capsys.readouterr().out
    assert printed.count("archon:d2, 2 ranks") == 1
    assert "PASS: 1 of 1 layouts give the numbers of one process (1 cases" in printed


@pytest.mark.slow
def test_the_command_exits_with_1_when_a_number_differs_and_names_it(capsys, monkeypatch):
    # Two micro-batches add up in another order than one.
    monkeypatch.setitem(verdicts.LIMITS, "float64", 0.0)
    assert run_command("qwen3", "--layout", "d1") == 1
    printed = capsys.readouterr().out
    assert "FAIL float64 untied: gradients: " in printed
    assert "different: archon:d1" in printed


@pytest.mark.slow
def test_the_command_exits_with_2_for_a_layout_that_does_not_fit_and_runs_the_others(capsys):
    assert run_command("qwen2", "--layout", "t8", "--layout", "d1") == 2
    printed = capsys.readouterr().out
    assert "REFUSED" in printed
    assert "the largest t below 8 that works is t4" in printed
    assert "1 of 2 layouts" in printed


def facts_of_reference(case, folder):
    assert list(compute_references([(case, folder)])) == [None]
    record = torch.load(folder / RECORD, weights_only=False)
    names = {frozenset(tensors) for moment in record.steps for tensors in (moment.gradients, moment.weights)}
    smallest = min(float(gradient.abs().max()) for moment in record.steps for gradient in moment.gradients.values())
    return [sorted(found) for found in names], record.steps[0].gradients["embed.weight"].shape, smallest


def test_a_reference_holds_every_parameter_whole_and_no_gradient_that_is_zero(tmp_path):
    config = config_of("qwen2")
    [([names], shape, smallest)] = run_world(facts_of_reference, 1, (variant_case(config, "untied"), tmp_path))
    assert len(names) == 3 + 12 * config["num_hidden_layers"]
    assert shape == (config["vocab_size"], config["hidden_size"])
    assert smallest > 0
