"""Plans of engines that compute shared prompts once, against prefix trees of real sequences."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.models.anatomy import AttentionAnatomy
from archon_core.models.parallel_plan import HeadCounts
from archon_core.plugins import registry
from archon_engine.data.prefix_tree import PrefixTree, build_prefix_tree
from archon_engine.data.tree_packing import plan_tree_micro_batches
from archon_plan import shared_prompts
from archon_plan.constraints import check_engine
from archon_plan.engine_plan import EnginePlan, plan_engine
from archon_plan.flops import keys_of
from archon_plan.parts import Sequences
from archon_plan.request import request_run
from archon_plan.setting import SharedPrompt, Tokens
from archon_plan.shared_prompts import apart, path_keys, samples_together, tree_bins, tree_tokens

RUN = Path(__file__).parents[2] / "examples/archon_qwen3_moe.yaml"


def tree_of(prompts: int, samples: int, prompt: int, completion: int) -> PrefixTree:
    rows = [[p] * prompt + [100 + p * samples + s] * completion for p in range(prompts) for s in range(samples)]
    return build_prefix_tree(np.array(rows).reshape(-1), [prompt + completion] * len(rows))


def attention(window: int | None) -> AttentionAnatomy:
    return AttentionAnatomy(HeadCounts(4, 2), 8, 8, window=window)


@pytest.mark.parametrize("window", [None, 5, 16, 100])
@pytest.mark.parametrize(("samples", "prompt", "completion"), [(1, 7, 4), (4, 12, 8), (3, 1, 20)])
def test_tokens_of_a_tree_see_the_keys_of_their_paths(window, samples, prompt, completion):
    tree = tree_of(2, samples, prompt, completion)
    tokens = Tokens(tree.n_tokens, sequence=prompt + completion, shared=SharedPrompt(prompt, samples))
    seen = sum(min(int(depth) + 1, window or tree.n_tokens) for depth in tree.depths)
    assert keys_of(attention(window), tokens) * tree.n_tokens == pytest.approx(seen)
    assert path_keys(tokens) * tree.n_tokens == pytest.approx(sum(map(len, tree.paths)))


@pytest.mark.parametrize("algorithm", ["ffd", "kk"])
@pytest.mark.parametrize(("limit", "n_mbs", "granularity"), [(None, 1, 1), (90, 1, 1), (90, 4, 2), (200, 3, 1)])
def test_micro_batches_are_those_of_the_engine(algorithm, limit, n_mbs, granularity):
    prompts, samples, prompt, completion = 3, 4, 30, 18
    tree = tree_of(prompts, samples, prompt, completion)
    lengths = [prompt + completion] * (prompts * samples)
    spec = MicroBatchSpec(n_mbs=n_mbs, max_tokens_per_mb=limit, granularity=granularity, packing_algorithm=algorithm)
    options = {"n_mbs": n_mbs, "granularity": granularity, "algorithm": algorithm}
    limit = None if limit is None else max(limit, 48 * granularity)
    expected = plan_tree_micro_batches(tree, lengths, max_tokens_per_mb=limit, **options)
    sequences = Sequences(length=48, prompt=prompt, samples=samples)
    found = tree_bins(len(lengths), sequences, spec)
    assert [*map(list, found)] == expected
    for members in found:
        distinct = {int(token) for index in members for token in tree.token_of[48 * index : 48 * index + 48]}
        assert tree_tokens(sequences, members) == len(distinct)


def test_long_sequences_are_measured_in_several_tokens(monkeypatch):
    spec = MicroBatchSpec(max_tokens_per_mb=4000)
    sequences = Sequences(length=1009, prompt=502, samples=4)
    exact = tree_bins(16, sequences, spec)
    monkeypatch.setattr(shared_prompts, "MOST_TOKENS", 1000)
    assert tree_bins(16, sequences, spec) == exact


def test_samples_of_a_random_mini_batch_are_counted_over_its_prompts():
    """Of 3 prompts with 2 samples, draws of 3 sequences have 2.4 prompts on average."""
    draws = [*combinations([0, 0, 1, 1, 2, 2], 3)]
    prompts = sum(len(set(draw)) for draw in draws) / len(draws)
    assert samples_together(3, 2, 3) == pytest.approx(3 / prompts)
    assert samples_together(3, 2, 6) == 2
    # Nearly as if each sample were drawn by itself, with probability 1/4.
    assert samples_together(128, 8, 128 * 8 // 4) == pytest.approx(8 / 4 / (1 - (3 / 4) ** 8), rel=1e-2)


def test_a_fraction_of_a_sample_counts():
    """Ten sequences with 1.25 samples per prompt have 8 prompts."""
    sequences = Sequences(length=48, prompt=30, samples=1.25)
    [members] = tree_bins(10, sequences, MicroBatchSpec())
    assert sorted(members) == [*range(10)]
    assert tree_tokens(sequences, members) == 8 * 30 + 10 * 18


def test_sequences_that_share_nothing_have_as_many_tokens():
    tokens = Tokens(9216, sequence=2048, scored=0.8, shared=SharedPrompt(1024, 8))
    assert apart(tokens) == Tokens(9216, sequence=1152, scored=0.8)
    assert apart(apart(tokens)) == apart(tokens)


def planned(*overrides: str) -> EnginePlan:
    [actor] = request_run(RUN, overrides, registry()).engines
    return plan_engine(actor, check_engine(actor, registry()))


def test_an_engine_with_shared_prefixes_counts_the_tokens_of_the_tree():
    """256 prompts of at most 1,024 tokens, with 4 samples of as many, on one data rank in micro-batches of 10,240."""
    one, shared = planned(), planned("actor.enable_tree_training=true")
    # Five sequences in a micro-batch, or two prompts with all of their samples.
    assert one.setting.tokens == Tokens(10240, 205, 2048, 0.5)
    assert shared.setting.tokens == Tokens(10240, 128, 2048, 0.8, SharedPrompt(1024, 4.0))
    assert shared.notes == (
        "actor: 4 samples share a prompt of 1,024 tokens (enable_tree_training): 1,310,720 tokens on each data rank in "
        "place of 2,097,152",
    )


def test_outputs_of_sequences_that_are_cut_are_in_their_completions():
    options = ("actor.enable_tree_training=true", "actor.mb_spec.max_tokens_per_mb=1280")
    [actor] = request_run(RUN, options, registry()).engines
    # Cut to 1,280 tokens, a sequence keeps 256 of its completion behind the prompt of 1,024.
    assert count_scored(plan_engine(actor, check_engine(actor, registry()))) == 256


def count_scored(plan: EnginePlan) -> float:
    return plan.setting.tokens.scored * plan.setting.tokens.per_micro_batch


def test_a_short_sequence_keeps_a_token_of_its_completion():
    options = ["actor.enable_tree_training=true", "gconfig.max_new_tokens=1"]
    [actor] = request_run(RUN, options, registry(), seq=10).engines
    assert (actor.sequences.length, actor.sequences.prompt) == (10, 9)


def test_prefixes_of_written_data_are_not_known():
    run = request_run(RUN.parent / "sft_jsonl.yaml", ["actor.enable_tree_training=true"], registry())
    assert any(note.startswith("actor.enable_tree_training: which prefixes") for note in run.notes)
    assert run.engines[0].sequences.prompt == 0
