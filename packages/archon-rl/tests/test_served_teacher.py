"""Runs with a teacher on servers: the same training as with a teacher on the trainer's ranks."""

from __future__ import annotations

import pytest
import torch
from bigram_engine import BigramEngine, BigramScorer
from run_results import rows, table

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import ConfigError
from archon_rl.trainer.served_teacher import ServedTeacher

TRAINED = (
    "teacher.model_config={model_type: qwen3}",
    "teacher.warm_start={steps: 5, lr: 0.1, batch_size: 8}",
    "trainer.max_steps=3",
    "gconfig.temperature=0.7",
)
SERVED = ("teacher.engine_type=rollout", "teacher.rollout.backend=bigram_servers:d2t2", *TRAINED)
LOSSES = {"pure": "teacher.rl_loss_weight=0", "joint": "actor.ppo_n_minibatches=2"}


@pytest.fixture(autouse=True)
def scorers():
    BigramScorer.made.clear()
    yield BigramScorer.made
    assert all(scorer.closed for scorer in BigramScorer.made)


def trained(folder) -> list[dict[str, float]]:
    return [row for row in rows(folder) if "loss" in row]


@pytest.mark.parametrize(("loss", "backend", "n_ranks"), [("pure", "d2", 2), ("joint", "t2", 2), ("joint", "d1", 1)])
def test_a_run_is_that_of_a_teacher_on_the_trainers_ranks_on_any_layout(
    run, loss, backend, n_ranks, scorers, monkeypatch
):
    expected = run("teacher.engine_type=train", *TRAINED, LOSSES[loss], "trial_name=train")
    assert scorers == []
    roles, build = [], BigramEngine.__init__
    monkeypatch.setattr(BigramEngine, "__init__", lambda self, *a, **k: roles.append(k["role"]) or build(self, *a, **k))
    found = run(*SERVED, LOSSES[loss], f"actor.backend=bigram:{backend}", ranks=n_ranks)
    for row, other in zip(trained(found), trained(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(table(found), table(expected), rtol=1e-9, atol=1e-9)
    assert roles.count("teacher") == n_ranks, "once per rank, for its supervised steps"


def test_the_servers_get_the_teachers_checkpoint_and_their_place(run, scorers):
    options = ("teacher.rollout.setup_timeout=9", "teacher.mb_spec.max_tokens_per_mb=50", "teacher.dtype=float64")
    folder = run(*SERVED, *options, "trainer.max_steps=1")
    [scorer] = scorers
    assert (scorer.option, scorer.folder) == ("teacher.rollout", folder.path / "teacher-servers")
    assert scorer.config.setup_timeout == 9
    model = scorer.model
    assert (model.path, model.dtype) == (str(folder.path / "teacher_warm_start"), "float64")
    assert (model.vocab_size, model.max_tokens, model.temperature) == (64, 50, 0.7)
    assert scorer.decisions[0] in run.context.decisions


def test_a_resumed_run_continues_with_the_same_numbers(run):
    whole = run(*SERVED, "trial_name=whole", "trainer.max_steps=6")
    with pytest.raises(KeyboardInterrupt):
        run(*SERVED, "trial_name=parts", "trainer.max_steps=6", stop_after=3)
    parts = run(*SERVED, "trial_name=parts", "trainer.max_steps=6", "trainer.resume=true")
    assert rows(parts) == rows(whole)
    torch.testing.assert_close(table(parts), table(whole), rtol=0, atol=0)


def test_servers_end_with_the_run_when_a_step_fails(run, scorers, monkeypatch):
    monkeypatch.setattr(BigramScorer, "score", lambda self, sequences: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*SERVED)
    assert scorers[0].closed


def test_scores_are_aligned_to_predictions():
    class Servers:
        def score(self, sequences):
            assert sequences == [[3, 4, 5], [6], [7, 8]]
            return [[-0.1, -0.2], [], [-0.3]]

    batch = Batch.from_sequences([[3, 4, 5], [6], [7, 8]])
    outputs = ServedTeacher(Servers(), 0.5).forward_batch(batch, OutputRequest(("logprobs",), 0.5))
    assert outputs["logprobs"].tolist() == [-0.1, -0.2, 0.0, 0.0, -0.3, 0.0]
    assert outputs["logprobs"].dtype == torch.float64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("teacher.rollout.backend=local",),
            r"teacher\.rollout\.backend: found 'local' with teacher\.engine",
        ),
        (("teacher.warm_start.steps=0",), r"teacher\.path: found no path with .*whose servers load a checkpoint"),
        (
            ("teacher.path=here", "teacher.init_from_scratch=true", "teacher.warm_start.steps=0"),
            r"teacher\.path: found init_from_scratch=true",
        ),
        (("teacher.rollout.addresses=[h:1]",), r"teacher\.rollout\.addresses: found \['h:1'\] with .*steps=5: running"),
        (("teacher.rollout.min_servers=0",), r"teacher\.rollout\.min_servers: found 0"),
    ],
)
def test_servers_that_could_not_have_the_teachers_weights_are_refused(run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run.config(*SERVED, *overrides)


def test_engines_that_cannot_score_are_refused(run):
    with pytest.raises(ConfigError, match=r"teacher\.rollout\.backend: found bigram_rollout, which cannot score"):
        run(*SERVED, "teacher.rollout.backend=bigram_rollout")


AREAL = """
total_train_steps: 2
rollout: {backend: "vllm:d1p1t1"}
teacher:
  engine_type: rollout
  path: large-model
  rollout: {backend: "vllm:d1p1t2", scheduling_spec: [{gpu: 1}], max_concurrent_rollouts: 8, request_timeout: 60}
  distill_loss_weight: "5e-3"
actor: {backend: "bigram:d1", path: small-model}
"""


def test_a_file_of_areal_names_the_teachers_servers(run):
    teacher = run.config(text=AREAL).teacher
    assert (teacher.path, teacher.engine_type, teacher.distill_loss_weight) == ("large-model", "rollout", 0.005)
    assert (teacher.rollout.backend, teacher.rollout.request_timeout) == ("vllm:d1p1t2", 60.0)
    with pytest.raises(ConfigError, match=r"teacher\.rollout\.api_url"):
        run.config(text=AREAL.replace("request_timeout: 60", "api_url: https://example.org"))
