"""Decisions of the Megatron oracle without Megatron-Core: refusals, places of weights, padding."""

from collections import Counter
from importlib.metadata import PackageNotFoundError
from itertools import product

import pytest
import torch

from archon_core.cli.main import main
from archon_core.contracts.batch import Batch
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_testing.batches import MASK, PULL
from archon_testing.megatron_oracle import architecture
from archon_testing.megatron_oracle.architecture import MegatronSizes, check_installed, check_model, refusal
from archon_testing.megatron_oracle.step import PaddedBatch
from archon_testing.megatron_oracle.weight_places import HeldParameters
from archon_testing.verdicts import QUANTITIES, Comparison, Deviation, worst_of

DENSE = {
    "model_type": "qwen3",
    "vocab_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
MOE = {**DENSE, "model_type": "qwen3_moe", "num_experts": 8}


@pytest.mark.parametrize("layout", ["d1", "d2", "r2", "t2", "t4", "p2", "p4", "d2t2", "t2p2", "d2p2"])
def test_dense_layouts_that_megatron_runs(layout):
    assert refusal(parse_layout(f"archon:{layout}"), DENSE) == ""


@pytest.mark.parametrize("layout", ["d2e2", "d4e2", "d2p2e2", "p2"])
def test_layouts_of_experts_that_megatron_runs(layout):
    assert refusal(parse_layout(f"archon:{layout}"), MOE) == ""


@pytest.mark.parametrize(
    ("layout", "entries", "names"),
    [
        ("c2", DENSE, ("c2", "c1", "Transformer Engine")),
        ("d2t2c2", DENSE, ("c2",)),
        ("d2e2", DENSE, ("e2",)),
        ("d8", DENSE, ("8 ranks", "at most 4")),
        ("t4", {**DENSE, "num_key_value_heads": 2}, ("num_key_value_heads 2", "t4")),
        ("p3", DENSE, ("num_hidden_layers 4", "p3")),
        ("t2", MOE, ("t2 with experts", "sequence parallelism")),
        ("d4e4", {**MOE, "num_experts": 6}, ("num_experts 6", "e4")),
    ],
)
def test_other_layouts_are_refused_with_what_is_allowed(layout, entries, names):
    reason = refusal(parse_layout(f"archon:{layout}"), entries)
    assert all(name in reason for name in (f"'archon:{layout}'", *names)), reason


@pytest.mark.parametrize(
    "entries",
    [
        {**DENSE, "model_type": "llama"},
        {**DENSE, "use_sliding_window": True},
        {**DENSE, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {**DENSE, "attention_bias": True},
    ],
)
def test_models_that_the_oracle_cannot_build_are_refused(entries):
    check_model(DENSE)
    with pytest.raises(ConfigError, match=r"--oracle megatron: found .* allowed .* without"):
        check_model(entries)


def test_without_megatron_the_command_says_what_to_install(monkeypatch, capsys):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(architecture, "version", missing)
    with pytest.raises(ConfigError, match=r"found no megatron-core; allowed is 0\.16\.1; install it with pip install"):
        check_installed()
    with pytest.raises(SystemExit):
        main(["verify", "qwen3", "--oracle", "megatron", "--layout", "t2"])
    assert "archon-testing[megatron]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--all",),
        ("--layout", "t2", "--dtype", "float64"),
        ("--layout", "t2", "--ranks-at-once", "2"),
        ("--layout", "t2", "--cp-style", "gather"),
    ],
)
def test_options_of_the_other_oracle_are_refused(options, capsys):
    with pytest.raises(SystemExit) as done:
        main(["verify", "qwen3", "--oracle", "megatron", *options])
    assert done.value.code == 2
    assert "--oracle megatron" in capsys.readouterr().err


def test_sizes_of_groups_come_from_the_layout():
    assert MegatronSizes.of(parse_layout("archon:r2d2p2e2"), moe=True) == MegatronSizes(1, 2, 4, 2)
    assert MegatronSizes.of(parse_layout("archon:t2p2"), moe=False) == MegatronSizes(2, 2, 1, 1)


def test_the_parts_of_all_ranks_cover_every_weight_once():
    """Shapes of Megatron-Core's parameters for 4 heads of 3 numbers, 2 key heads, 6 inner rows and 4 experts."""
    hidden, size, inner, experts = 5, 3, 6, 4
    whole = {
        "model.embed_tokens.weight": (8, hidden),
        "lm_head.weight": (8, hidden),
        "model.layers.2.self_attn.q_proj.weight": (4 * size, hidden),
        "model.layers.2.self_attn.k_proj.weight": (2 * size, hidden),
        "model.layers.2.self_attn.v_proj.weight": (2 * size, hidden),
        "model.layers.2.self_attn.o_proj.weight": (hidden, 4 * size),
        "model.layers.2.mlp.gate_proj.weight": (inner, hidden),
        "model.layers.2.mlp.up_proj.weight": (inner, hidden),
        "model.layers.2.mlp.down_proj.weight": (hidden, inner),
    }
    for expert in range(experts):
        whole |= {
            f"model.layers.2.mlp.experts.{expert}.{name}.weight": shape
            for name, shape in (("gate_proj", (4, hidden)), ("up_proj", (4, hidden)), ("down_proj", (hidden, 4)))
        }
    layer = "decoder.layers.0"
    parameters = {
        "embedding.word_embeddings.weight": (4, hidden),
        "output_layer.weight": (4, hidden),
        f"{layer}.self_attention.linear_qkv.weight": (4 * size, hidden),
        f"{layer}.self_attention.linear_proj.weight": (hidden, 2 * size),
        f"{layer}.mlp.linear_fc1.weight": (inner, hidden),
        f"{layer}.mlp.linear_fc2.weight": (hidden, inner // 2),
    }
    for expert in range(experts // 2):
        parameters |= {
            f"{layer}.mlp.experts.local_experts.{expert}.linear_fc1.weight": (8, hidden),
            f"{layer}.mlp.experts.local_experts.{expert}.linear_fc2.weight": (hidden, 4),
        }
    seen = {name: torch.zeros(shape) for name, shape in whole.items()}
    for tensor_rank, expert_rank in product(range(2), range(2)):
        held = HeldParameters(
            tensor_rank, expert_rank * 2, head_dim=size, queries_per_group=2, tied=False, layers={0: 2}
        )
        for name, shape in parameters.items():
            parameter = torch.zeros(shape)
            for place in held.places(name, parameter):
                part = place.part(parameter)
                assert tuple(part.shape) == place.box.shape
                part += 1
                seen[place.name][place.box.slices] += 1
            assert bool((parameter == 1).all()), f"{name} has elements without a place, or with two"
    # Two expert ranks hold the same dense weights here, and two tensor ranks the same experts.
    assert {name: set(counts.flatten().tolist()) for name, counts in seen.items()} == {name: {2.0} for name in whole}


def test_a_tied_head_on_a_later_stage_is_the_embedding():
    held = HeldParameters(1, 0, head_dim=2, queries_per_group=1, tied=True, layers={})
    [place] = held.places("output_layer.weight", torch.zeros(4, 3))
    assert (place.name, place.box.start) == ("model.embed_tokens.weight", (4, 0))


@pytest.mark.parametrize(("n_micro_batches", "data_ranks"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_every_target_is_on_one_data_rank_in_one_micro_batch(n_micro_batches, data_ranks):
    lengths, generator = (1, 5, 3, 2, 4), torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 50, (n,), generator=generator) for n in lengths]
    mask = [torch.tensor([1.0] * (n - 1) + [0.0]) for n in lengths]
    pull = [torch.rand(n, generator=generator) + 0.5 for n in lengths]
    batch = Batch.from_sequences(ids, {MASK: mask, PULL: pull})
    expected = Counter(
        (int(a), int(b), round(float(w), 5))
        for row, weights in zip(ids, pull, strict=True)
        for a, b, w in zip(row[:-1], row[1:], weights[:-1], strict=True)
    )
    found = Counter()
    for rank in range(data_ranks):
        own = PaddedBatch.of(batch, n_micro_batches=n_micro_batches, data_ranks=data_ranks, data_rank=rank)
        assert own.ids.shape[0] == n_micro_batches
        assert bool((own.weights[~own.counted] == 0).all())
        found.update(
            (int(a), int(b), round(float(w), 5))
            for a, b, w in zip(own.ids[own.counted], own.labels[own.counted], own.weights[own.counted], strict=True)
        )
    assert found == expected


def test_a_comparison_has_the_limit_of_its_oracle():
    worst = {quantity: Deviation(7e-6, "x", 1) for quantity in QUANTITIES}
    usual, strict = Comparison("float32", worst), Comparison("float32", worst, limit=5e-6)
    assert usual.passed
    assert "gradients" in strict.failed
    assert worst_of([strict, strict]).limit == 5e-6
