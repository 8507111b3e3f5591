"""Evaluation on held-out records: sampled with options of its own, before training or not."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
from bigram_engine import BigramRollout
from hypothesis import given
from hypothesis import strategies as st
from run_results import rows

from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.records import ListDataset
from archon_rl.pass_at_k import mean_pass_at_k, pass_at_k
from archon_rl.rewards.checking import NamedReward
from archon_rl.trainer.evaluation import evaluate_reward, evaluation_seeds

SAMPLED = ("eval_gconfig.n_samples=3", "eval_gconfig.max_new_tokens=3", "eval_gconfig.temperature=0.7")
NAMES = ["eval/reward_avg@3", "eval/pass@1", "eval/pass@2", "eval/pass@3"]


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_one_that_passed(n, data):
    n_passed, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(combinations([True] * n_passed + [False] * (n - n_passed), k))
    assert pass_at_k(n, n_passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_estimates_are_for_powers_of_two_and_all_samples():
    assert list(mean_pass_at_k(6, [0])) == [1, 2, 4, 6]
    assert list(mean_pass_at_k(4, [0])) == [1, 2, 4]
    assert list(mean_pass_at_k(1, [0])) == [1]
    # Of two problems, one with one of four samples solved and one with all.
    assert mean_pass_at_k(4, [1, 4]) == {1: 0.625, 2: 0.75, 4: 1.0}


def evaluate(rewards, n_samples, **options):
    """An evaluation of records with these rewards, per record and sample."""
    encoder = SimpleNamespace(
        answer_key=None,
        encode_prompt=lambda record: (record["id"],),
        prompt=lambda record: record["id"],
        decode=lambda ids: ids[0],
        decode_literally=None,
    )

    class Engine:
        def generate(self, requests):
            return [[Completion((i,), (0.0,), (0,), "stop") for i in range(len(r.seeds))] for r in requests]

    reward = NamedReward("listed", lambda prompt, completion, record: rewards[prompt][completion])
    records = ListDataset([{"id": i} for i in range(len(rewards))], [f"record {i}" for i in range(len(rewards))])
    return evaluate_reward(Engine(), encoder, records, reward, GenerationConfig(n_samples=n_samples), **options)


def test_one_sample_has_a_reward_and_several_have_their_mean_and_passes():
    assert evaluate([[1.0], [0.0], [-1.0]], 1) == {"eval/reward": 0.0}
    graded = [[0.5, 0.0, -1.0], [1.0, 0.7, 1.0], [0.0, 0.0, -1.0]]
    assert evaluate(graded, 3) == pytest.approx(
        {"eval/reward_avg@3": 1.2 / 9, "eval/pass@1": 4 / 9, "eval/pass@2": (2 / 3 + 1) / 3, "eval/pass@3": 2 / 3}
    )
    strict = evaluate(graded, 3, pass_above=0.7, limit=2)
    assert strict == pytest.approx(
        {"eval/reward_avg@3": 2.2 / 6, "eval/pass@1": 1 / 3, "eval/pass@2": 0.5, "eval/pass@3": 0.5}
    )


def test_sampled_evaluations_have_the_same_numbers_on_every_layout_and_after_a_resume(run, monkeypatch):
    generate, seeds = BigramRollout.generate, []
    whole = run(*SAMPLED, "trial_name=whole")
    written = [row for row in rows(whole) if NAMES[0] in row]
    assert [row["step"] for row in written] == [0, 2, 4, 6]
    assert [name for name in written[0] if name.startswith("eval/")] == NAMES
    assert "eval/reward" not in written[0]
    for layout, n_ranks in (("d3", 3), ("t2", 2)):
        together = run(*SAMPLED, f"actor.backend=bigram:{layout}", f"trial_name={layout}", ranks=n_ranks)
        for row, expected in zip(rows(together), rows(whole), strict=True):
            assert {n: row.get(n) for n in NAMES} == pytest.approx({n: expected.get(n) for n in NAMES})

    def recorded(self, requests):
        seeds.append([r.seeds for r in requests if r.config.temperature == 0.7])
        return generate(self, requests)

    with pytest.raises(KeyboardInterrupt):
        run(*SAMPLED, "trial_name=parts", stop_after=3)
    monkeypatch.setattr(BigramRollout, "generate", recorded)
    parts = run(*SAMPLED, "trial_name=parts", "trainer.resume=true")
    assert rows(parts) == rows(whole)
    drawn = [tuple(evaluation_seeds(1)(place, number) for number in range(3)) for place in range(10)]
    assert [s for s in seeds if s] == [drawn, drawn], "every evaluation draws the same numbers"


def test_without_an_evaluation_before_training_the_first_one_follows_the_steps(run):
    folder = run("trainer.eval_before_train=false", "trainer.max_steps=2", "trainer.eval_every=1")
    assert [row["step"] for row in rows(folder)] == [1, 2]
    assert all("eval/reward" in row for row in rows(folder))
    output = (folder.path / "output.txt").read_text(encoding="utf-8")
    assert "before" not in output
    assert "Held-out records: reward 0" in output


def test_options_of_evaluations_are_checked_before_the_first_step(run):
    with pytest.raises(ConfigError, match=r"eval_gconfig\.top_p: found 2\.0"):
        run(*SAMPLED, "eval_gconfig.top_p=2")
    with pytest.raises(ConfigError, match=r"eval_gconfig\.stop_token_ids: found 999; allowed are the ids"):
        run(*SAMPLED, "eval_gconfig.stop_token_ids=[999]", "actor.model_config.vocab_size=64")
    with pytest.raises(DataError, match=r"eval_gconfig\.max_tokens=4 with the completion.* raise eval_gconfig"):
        run(*SAMPLED, "eval_gconfig.max_tokens=4")
