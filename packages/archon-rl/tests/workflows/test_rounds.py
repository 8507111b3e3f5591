"""Whole runs whose workflow asks several times, on an engine without servers: rounds of collective generation."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from bigram_engine import BigramRollout
from run_results import rows, table

from archon_core.errors import ConfigError, RewardError, TrainingError
from archon_core.plugins import WorkflowSpec, registry

TOLERANCE = 1e-9
"""Of float64 sums in another order, over a few steps of Adam."""

MULTI_TURN = (
    "workflow=multi_turn",
    "multi_turn.feedback='+'",
    "multi_turn.max_turns=3",
    "multi_turn.turn_discount=0.5",
)

FEW = ("trainer.max_steps=2", "data.validation_size=3")


@pytest.fixture
def uneven():
    """Workflows of ``uneven_workflow`` as plugins."""
    names = ("uneven", "leaves_out", "raises_sometimes", "raises_always", "returns_data")
    for name in names:
        registry().add(WorkflowSpec(name=name, target=f"uneven_workflow:{name}"))
    registry().add(WorkflowSpec(name="gives_rewards", target="uneven_workflow:gives_rewards", gives_rewards=True))
    yield
    for name in (*names, "gives_rewards"):
        registry().remove("workflow", name)


def assert_equal_runs(found, expected):
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(table(found), table(expected), rtol=TOLERANCE, atol=TOLERANCE)


def test_multi_turn_gives_the_same_numbers_on_every_layout(run):
    alone = run(*MULTI_TURN, *FEW, "trial_name=alone")
    first = rows(alone)[1]
    assert 1 < first["workflow/turns"] <= 3
    solved = [first[f"workflow/solved_by_turn_{turn}"] for turn in (1, 2, 3)]
    assert solved == sorted(solved)
    assert {"eval/reward", "eval/turns", "eval/solved_by_turn_2"} <= set(rows(alone)[0])
    for layout, n_ranks in (("d3", 3), ("d2t2", 4)):
        together = run(*MULTI_TURN, *FEW, f"actor.backend=bigram:{layout}", f"trial_name={layout}", ranks=n_ranks)
        assert_equal_runs(together, alone)


def test_one_turn_of_multi_turn_is_rlvr(run):
    few = (*FEW, "actor.dynamic_sampling=true")
    plain = run(*few, "trial_name=plain")
    one = run(*MULTI_TURN, *few, "multi_turn.max_turns=1", "trial_name=one")
    for row, other in zip(rows(one), rows(plain), strict=True):
        assert {name: row[name] for name in other if name != "time/reward"} == pytest.approx(
            {name: value for name, value in other.items() if name != "time/reward"}, rel=TOLERANCE, abs=TOLERANCE
        )
    torch.testing.assert_close(table(one), table(plain), rtol=TOLERANCE, atol=TOLERANCE)


def test_all_requests_of_a_round_are_generated_together(run, monkeypatch):
    lock, sizes = threading.Lock(), []
    generate = BigramRollout.generate

    def recorded(self, requests):
        with lock:
            sizes.append(len(requests))
        return generate(self, requests)

    monkeypatch.setattr(BigramRollout, "generate", recorded)
    # Nothing is right, so that every sample of the 4 records answers 3 times.
    options = ("multi_turn.solved_above=2", "trainer.max_steps=1", "data.validation_size=0", "trainer.eval_every=0")
    run(*MULTI_TURN, *options)
    assert sizes == [4, 16, 16]


def test_groups_of_unequal_numbers_of_trajectories_train_the_same_on_every_layout(run, uneven):
    own = ("workflow=uneven", "actor.reward_norm={mean_level: group, std_level: group}", *FEW)
    alone = run(*own, "trial_name=alone")
    row = rows(alone)[1]
    assert 0 <= row["workflow/odd"] <= 1
    assert "workflow/text" not in row
    assert_equal_runs(run(*own, "actor.backend=bigram:d2t2", "trial_name=together", ranks=4), alone)


def test_records_that_a_workflow_leaves_out_are_counted(run, uneven):
    found = rows(run("workflow=leaves_out"))[1:]
    assert sum(row["dropped/left_out"] for row in found) > 0
    assert all(row["dropped/workflow_failed"] == row["reward/failed"] == 0 for row in found)


def test_a_workflow_that_raises_costs_its_records_and_is_explained_once(run, uneven):
    folder = run("workflow=raises_sometimes", "rewards.max_failed=0.5", "data.validation_size=0")
    assert sum(row["dropped/workflow_failed"] for row in rows(folder)) > 1
    output = " ".join((folder.path / "output.txt").read_text().split())
    assert output.count("workflow 'raises_sometimes' raised ValueError: odd (uneven_workflow.py:") == 1
    assert "no reward for 1 of" in output


def test_a_workflow_that_always_raises_ends_the_run(run, uneven):
    with pytest.raises(RewardError, match="workflow 'raises_always' raised ValueError: odd"):
        run("workflow=raises_always", "actor.backend=bigram:d2", ranks=2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_wrong_result_ends_the_run_on_every_rank(run, uneven, ranks):
    with pytest.raises(
        TrainingError, match="workflow 'returns_data': found a value of type dict; allowed is a list of"
    ):
        run("workflow=returns_data", f"actor.backend=bigram:d{ranks}", ranks=ranks)


def test_a_run_resumes_with_the_file_of_its_workflow_alone(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "my_uneven.py"
    source = "import uneven_workflow\n\n\ndef build(config, parts):\n    return uneven_workflow.Uneven(config, parts)\n"
    file.write_text(source)
    options = ("workflow=my_uneven:build", *FEW)
    run(*options)
    resumed = (*options, "trainer.resume=true", "trainer.max_steps=3")
    for name, text in (("my_uneven", source + "# changed\n"), ("my_uneven", source)):
        sys.modules.pop(name)
        file.write_text(text)
        if text == source:
            assert rows(run(*resumed))[-1]["step"] == 3
            continue
        with pytest.raises(ConfigError, match=r"(?s)workflow: found workflow 'my_uneven:build' .*changed=\[workflow\]"):
            run(*resumed)
    sys.modules.pop("my_uneven")


def test_evaluations_report_the_samples_of_a_workflow(run):
    options = ("eval_gconfig.n_samples=4", "eval_gconfig.max_new_tokens=3", "eval_gconfig.temperature=2.0")
    evaluation = rows(run(*MULTI_TURN, *FEW, *options))[0]
    assert {"eval/reward_avg@4", "eval/pass@1", "eval/pass@2", "eval/pass@4", "eval/turns"} <= set(evaluation)
    # At temperature 2 nearly all answers are wrong, and right ones in later turns have half the reward or less.
    assert evaluation["eval/solved_by_turn_3"] == pytest.approx(evaluation["eval/pass@1"])
    assert evaluation["eval/reward_avg@4"] <= evaluation["eval/solved_by_turn_3"]


def test_evaluations_leave_out_what_the_workflow_leaves_out(run, uneven):
    options = (*FEW, "data.validation_size=12", "eval_gconfig.n_samples=2", "eval_gconfig.max_new_tokens=3")
    evaluation = rows(run("workflow=uneven", *options))[0]
    # Records have another number of trajectories, so that there are no k samples to pass.
    assert {"eval/reward_avg@2", "eval/odd"} <= set(evaluation)
    assert "eval/pass@1" not in evaluation
    assert evaluation["eval/odd"] > 0
    assert rows(run("workflow=leaves_out", *options, "trial_name=left_out"))[0]["eval/odd"] == 0
    failed = rows(run("workflow=raises_sometimes", *options, "rewards.max_failed=0.5", "trial_name=failed"))[0]
    assert failed["eval/reward_failed"] >= 1


@pytest.mark.parametrize("layout", ["d1", pytest.param("d2", marks=pytest.mark.wide)])
def test_evaluations_use_the_rewards_that_the_workflow_gives(run, uneven, layout):
    few = ("workflow=gives_rewards", "reward=null", *FEW, f"actor.backend=bigram:{layout}")
    before, first, second = rows(run(*few, ranks=int(layout[1])))
    assert first["reward"] == first["workflow/length"] > 0
    assert before["eval/reward"] == before["eval/length"] > 0
    assert {"eval/reward", "eval/length"} <= set(second)


def test_a_missing_module_is_named_before_anything_starts(run):
    with pytest.raises(ConfigError, match=r"workflow: found no my_absent\.py in"):
        run("workflow=my_absent:build")


def test_a_reward_model_scores_whole_steps_of_rlvr_alone(run):
    with pytest.raises(ConfigError, match=r"workflow: found multi_turn with reward=model.*; set workflow=rlvr, or"):
        run(*MULTI_TURN, "reward=model", "reward_model={path: x}")
