"""Tree training changes no number: sequences that share prefixes, computed once on layouts, against one process that
computes every sequence apart. And planted mistakes are caught."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts import batch as batches
from archon_core.contracts.batch import ROUTED_EXPERTS
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError, ModelError
from archon_engine.data import tree_micro_batch
from archon_engine.nn import key_gathering
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_moe import local_tokens
from archon_testing.batches import MASK, make_tree_batch
from archon_testing.cases import variant_case
from archon_testing.engines import BALANCING, fill_weights, starting_points
from archon_testing.losses import oracle_loss
from archon_testing.oracle import Oracle
from archon_testing.requested import read_layout
from archon_testing.requested_model import read_model

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def verdict(oracle, layout, variant="untied", *, model="qwen3", before=None, **fields):
    asked = read_layout(layout)
    entries = read_model(model).entries_for(asked.n_stages)
    case = variant_case(
        entries, variant, layout=str(asked.layout), schedule=asked.schedule, prefixes="shared", model=model, **fields
    )
    [found] = oracle.verify([case], before=before)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "variant", "model", "fields"),
    [
        ("d2", "untied", "qwen3", {"n_mbs": 2}),
        pytest.param("c2", "critic", "qwen3", {"cp_style": "gather"}, marks=pytest.mark.wide),
        pytest.param("p2-ZBV", "tied", "qwen3", {"n_mbs": 4}, marks=pytest.mark.wide),
        pytest.param("t2", "untied", "qwen3", {}, marks=pytest.mark.wide),
        pytest.param("d2t2c2", "untied", "qwen3", {"n_mbs": 2}, marks=pytest.mark.wide),
        pytest.param("d2e2", "untied", "qwen3_moe", {}, marks=pytest.mark.wide),
        pytest.param("c2t2", "untied", "deepseek_v3", {}, marks=pytest.mark.wide),
        # Keys and values gathered, alone or across groups that exchange heads; with experts, windows and sinks.
        pytest.param("c6", "untied", "qwen3", {}, marks=pytest.mark.wide),
        pytest.param("c2t2", "untied", "qwen3_moe", {"cp_style": "gather"}, marks=pytest.mark.wide),
        pytest.param("c4", "untied", "gpt_oss", {"cp_style": "hybrid"}, marks=pytest.mark.wide),
    ],
)
def test_a_layout_that_shares_prefixes_trains_as_one_process_without(oracle, layout, variant, model, fields):
    found = verdict(oracle, layout, variant, model=model, **fields)
    assert found.passed, found.comparison


# Planted mistakes, one patch each.


def show_siblings():
    """A segment sees all tokens before it, those of other sequences, too."""
    build = tree_micro_batch.build_prefix_tree

    def with_siblings(keys, lengths):
        tree = build(keys, lengths)
        return replace(tree, paths=tuple(np.arange(path[-1] + 1) for path in tree.paths))

    tree_micro_batch.build_prefix_tree = with_siblings


def count_positions_along_the_pack():
    build = tree_micro_batch.build_prefix_tree

    def with_places(keys, lengths):
        tree = build(keys, lengths)
        return replace(tree, depths=np.arange(tree.n_tokens))

    tree_micro_batch.build_prefix_tree = with_places


def count_gradients_of_shared_outputs_once():
    expand = batches.Expansion.expand

    def averaged(self, name, output):
        places = self.tokens if name == "values" else self.predictions
        n = (places[:, None] == places).sum(1)
        whole = expand(self, name, output)
        return whole / n + (whole - whole / n).detach()

    batches.Expansion.expand = averaged


def count_loads_of_shared_tokens_once():
    rows = local_tokens.LocalTokens._rows

    def first_only(self, shared):
        tokens = shared.token_of
        earlier = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril(-1)
        return rows(self, shared).masked_fill(((tokens[:, None] == tokens) & earlier).any(1), -1)

    local_tokens.LocalTokens._rows = first_only


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "failed"),
    [
        (show_siblings, {"outputs", "loss", "gradients"}),
        (count_positions_along_the_pack, {"outputs", "loss", "gradients"}),
        (count_gradients_of_shared_outputs_once, {"gradients", "gradient norm", "weights"}),
    ],
)
def test_planted_mistakes_are_caught(oracle, plant, failed):
    found = verdict(oracle, "d1", before=plant)
    assert failed <= set(found.comparison.failed)


def show_siblings_to_gathering_ranks():
    """A rank's queries see all gathered keys before them, those of other sequences, too."""
    part_of_tree = key_gathering.part_of_tree

    def with_siblings(packed, shared, ranges):
        part = part_of_tree(packed, shared, ranges)
        ends = tuple(run.queries.stop for run in key_gathering.runs_of(shared.segments, ranges))
        keys = torch.cat([torch.arange(end) for end in ends])
        starts = torch.tensor([0, *accumulate(ends)], dtype=torch.int32)
        seen = replace(part.shared, key_tokens=keys, key_lengths=ends, cu_keys=starts)
        return replace(part, max_seqlen=max(ends), shared=seen)

    key_gathering.part_of_tree = with_siblings


@pytest.mark.slow
@pytest.mark.wide
def test_a_rank_that_sees_gathered_keys_of_siblings_is_caught(oracle):
    found = verdict(oracle, "c2", cp_style="gather", before=show_siblings_to_gathering_ranks)
    assert {"outputs", "loss", "gradients"} <= set(found.comparison.failed)


@pytest.mark.slow
@pytest.mark.wide
def test_loads_that_count_a_shared_token_once_are_caught(oracle):
    found = verdict(oracle, "d1", model="qwen3_moe", before=count_loads_of_shared_tokens_once)
    assert {"loss", "gradients"} <= set(found.comparison.failed)


# On one process.


class LogLikelihoodWhere:
    """Asks for log-probabilities at some places only."""

    request = OutputRequest(("logprobs",), where="counted")

    def weights(self, batch):
        return {"token": batch.token_fields["counted"].sum()}

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": -(outputs["logprobs"] * micro_batch.token_fields["pull"]).sum()})


def engine_of(model, *, shares, n_mbs=1, replay=False, **changes):
    entries = {**load_target(registry().get("model", model).tiny_config)(), **changes}
    options = ArchonOptions(enable_compile=False, model=model, moe_routing_replay=replay)
    if "moe" in registry().get("model", model).needs:
        vars(options).update(BALANCING)
    config = ArchonEngineConfig(
        model_config=entries,
        dtype="float64",
        optimizer=OptimizerConfig(gradient_clipping=0.0),
        archon=options,
        enable_tree_training=shares,
        mb_spec=MicroBatchSpec(n_mbs=n_mbs),
    )
    engine = assemble(
        config, role="actor", layout=parse_layout("archon:d1"), seed=3, total_steps=None, explicit=frozenset()
    )
    engine.initialize()
    return engine


def step_of(model, batch, loss, **options):
    engine = engine_of(model, **options)
    fill_weights(engine.parameters, 1, starts=starting_points(engine.module))
    outputs = engine.forward_batch(batch, loss.request)
    stats = engine.train_batch(batch, loss)
    return stats, outputs, {name: parameter.grad for name, parameter in engine.parameters.items()}


def assert_same(shared, apart):
    (stats, outputs, gradients), (expected, right_outputs, right) = shared, apart
    assert stats.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert stats.n_tokens == expected.n_tokens
    assert stats.metrics == pytest.approx(expected.metrics, rel=TOLERANCE)
    for found, wanted in ((outputs, right_outputs), (gradients, right)):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            atol = TOLERANCE * float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=name)


def tree_batch(vocab_size=128):
    return make_tree_batch(0, vocab_size=vocab_size, longest=512, dtype=torch.float64, seed=1)


def test_experts_balance_by_the_sequences_of_a_token_and_follow_a_replay_where_samples_disagree():
    batch = tree_batch()
    generator = torch.Generator().manual_seed(2)
    # By id and position, as a rollout would route them; some samples disagree from some token on.
    places = torch.cat([torch.arange(length) for length in batch.lengths])
    first = (batch.input_ids + places)[:, None] % 8 + torch.zeros(4, dtype=torch.int64)
    experts = torch.stack((first, (first + 3) % 8), -1).to(torch.int16)
    experts[torch.rand(batch.n_tokens, generator=generator) < 0.05] = -1
    batch = batch.with_fields({ROUTED_EXPERTS: experts})
    loss = oracle_loss(critic=False)
    apart = step_of("qwen3_moe", batch, loss, shares=False, replay=True)
    shared = step_of("qwen3_moe", batch, loss, shares=True, replay=True)
    assert_same(shared, apart)


def test_places_that_a_loss_leaves_out_are_not_predicted_and_a_large_tree_may_be_split():
    batch = tree_batch()
    counted = batch.token_fields[MASK].bool() & (torch.arange(batch.n_tokens) % 3 > 0)
    batch = batch.with_fields({"counted": counted})
    apart = step_of("qwen3", batch, LogLikelihoodWhere(), shares=False)
    shared = step_of("qwen3", batch, LogLikelihoodWhere(), shares=True, n_mbs=3)
    assert shared[0].n_micro_batches == 3
    assert_same(shared, apart)


def test_sinks_and_windows_see_the_path():
    batch = tree_batch()
    loss = oracle_loss(critic=False)
    assert_same(step_of("gpt_oss", batch, loss, shares=True, n_mbs=2), step_of("gpt_oss", batch, loss, shares=False))


def test_models_with_recurrent_states_and_rotations_by_length_are_refused_by_name():
    with pytest.raises(ModelError, match=r"actor\.enable_tree_training: found true; model 'qwen3_5' cannot continue"):
        engine_of("qwen3_5", shares=True)
    longrope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ConfigError, match=r"enable_tree_training: found true with rope_type 'dynamic'"):
        engine_of("qwen3", shares=True, rope_parameters=longrope)
    entries = {**load_target(registry().get("model", "qwen3").tiny_config)(), "attention_dropout": 0.1}
    engine = assemble(
        ArchonEngineConfig(model_config=entries, disable_dropout=False, enable_tree_training=True), seed=1
    )
    with pytest.raises(ConfigError, match="this model applies no dropout"):
        engine.initialize()
