"""The distillation loss against the definition of the KL, its options, and what a run with a teacher does."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from table_model import TableModel, evaluate

from archon_core.config.validation import check_options
from archon_core.contracts.batch import Batch
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig
from archon_core.errors import ConfigError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.algorithm import DropTruncated
from archon_rl.config import PolicyOptions, WarmStartOptions
from archon_rl.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.distillation import DistillationTerm, WeightedTerm, sequence_baseline
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.kl import KLTerm
from archon_rl.losses.objective import Objective
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.presets import grpo
from archon_rl.teacher_options import TeacherOptions

VOCABULARY = 7


def distributions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the student, with gradient; log-probabilities of the teacher and of the policy that sampled."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, sampled = torch.randn(3, VOCABULARY, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1), sampled.log_softmax(-1)


def one_token_each(sampled: torch.Tensor, teacher: torch.Tensor) -> Batch:
    """A batch in which every token of the vocabulary was sampled once, as a sequence of its own."""
    fields = {"logprobs": sampled, "teacher_logprobs": teacher, "teacher_baseline": torch.full_like(teacher, 1.7)}
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    return Batch(torch.arange(VOCABULARY), (1,) * VOCABULARY, {"loss_mask": mask, **fields})


@pytest.mark.parametrize("has_baseline", [False, True])
def test_value_and_gradient_are_expectations_of_the_kl_whoever_sampled(has_baseline):
    logits, teacher, sampled = distributions()
    policy = logits.log_softmax(-1)
    kl = (policy.exp() * (policy - teacher)).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    for behaviour in (policy.detach(), sampled):
        values = DistillationTerm(1.0, has_baseline)({"logprobs": policy}, one_token_each(behaviour, teacher)).values
        mean = (behaviour.exp() * values).sum()
        torch.testing.assert_close(mean, kl, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(mean, logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_the_mean_log_ratio_which_areal_minimises_beside_a_policy_loss_has_no_expected_gradient():
    logits, teacher, _ = distributions()
    policy = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad((policy.detach().exp() * (policy - teacher)).sum(), logits)
    assert gradient.abs().max() < 1e-15


def test_the_loss_of_two_tokens_by_hand():
    # p = 1/2 with p_behave = 1/4 and p_teacher = 1/8: r = 2, x = log 4. Then p = p_behave = 1/4, p_teacher = 1/2.
    logprobs = torch.tensor([1 / 2, 1 / 4], dtype=torch.float64).log().requires_grad_()
    sampled = torch.tensor([1 / 4, 1 / 4], dtype=torch.float64).log()
    teacher = torch.tensor([1 / 8, 1 / 2], dtype=torch.float64).log()
    fields = {"loss_mask": torch.tensor([True, True]), "logprobs": sampled, "teacher_logprobs": teacher}
    result = DistillationTerm(0.5)({"logprobs": logprobs}, Batch(torch.zeros(2, dtype=torch.long), (2,), fields))
    by_hand = torch.tensor([2 * math.log(4), -math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(result.metrics["teacher_kl"], by_hand)
    torch.testing.assert_close(result.values, 0.5 * by_hand)
    # The gradient of r sg(x) is r x.
    (gradient,) = torch.autograd.grad(result.values.sum(), logprobs)
    torch.testing.assert_close(gradient, 0.5 * by_hand)


def test_the_baseline_is_the_mean_over_the_trained_tokens_of_other_sequences():
    mask = torch.tensor([True, True, False, True, False, False, True, True])
    batch = Batch(torch.zeros(8, dtype=torch.long), (3, 2, 1, 2), {"loss_mask": mask})
    gap = torch.tensor([1.0, 3.0, math.nan, 5.0, math.nan, math.nan, 2.0, 6.0], dtype=torch.float64)
    found = sequence_baseline(gap, batch)
    assert found.tolist() == pytest.approx([13 / 3] * 3 + [12 / 4] * 2 + [17 / 5] + [9 / 3] * 2)
    alone = batch.select([0])
    assert sequence_baseline(gap[:3], alone).tolist() == [0, 0, 0]


LENGTHS = (5, 2, 7, 4, 3)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(6)], ids=lambda a: a.unit)
def test_both_losses_are_divided_by_the_same_weight_of_the_whole_batch(aggregation):
    """The joint objective is the weighted sum of the two objectives, for every split."""
    generator = torch.Generator().manual_seed(1)
    n_tokens = sum(LENGTHS)
    mask = torch.cat([torch.arange(n) < n - 1 for n in LENGTHS])

    def noise() -> torch.Tensor:
        return torch.randn(n_tokens, generator=generator, dtype=torch.float64)

    ids = torch.randint(VOCABULARY, (n_tokens,), generator=generator)
    fields = {"advantages": noise(), "logprobs": noise() - 2, "teacher_logprobs": noise() - 2, "loss_mask": mask}
    batch = Batch(ids, LENGTHS, fields)
    policy, distillation = ClippedPolicyTerm(), DistillationTerm(0.25)
    whole = [list(range(len(LENGTHS)))]
    model = TableModel(VOCABULARY)
    rl = evaluate(model, Objective((policy,), aggregation), batch, whole)
    kl = evaluate(model, Objective((distillation,), aggregation), batch, whole)
    joint = Objective((WeightedTerm(policy, 3.0), distillation), aggregation)
    for parts in (whole, [[0], [1, 2], [3, 4]], [[4, 1], [0, 3], [2]]):
        value, gradient, metrics = evaluate(model, joint, batch, parts)
        torch.testing.assert_close(value, 3 * rl[0] + kl[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, 3 * rl[1] + kl[1], rtol=1e-12, atol=1e-12)
        assert metrics["teacher_kl"] == pytest.approx(kl[2]["teacher_kl"], rel=1e-12)
        assert metrics["clip_fraction"] == pytest.approx(rl[2]["clip_fraction"], rel=1e-12)


@dataclass
class Actor(ArchonEngineConfig, PolicyOptions):
    """``actor`` as the merged configuration has it."""


@dataclass
class Teacher(ArchonEngineConfig, TeacherOptions):
    """``teacher`` likewise."""


@dataclass
class Configuration:
    actor: Actor = field(default_factory=Actor)
    teacher: Teacher | None = None
    gconfig: GenerationConfig = field(default_factory=lambda: GenerationConfig(n_samples=1, max_new_tokens=16))
    ref: ArchonEngineConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    workflow: str = "rlvr"
    dynamic_bs: bool = False


def teacher(**options) -> Teacher:
    return Teacher(engine_type="train", path="large-model", **options)


def compose(section: Teacher, actor: Actor | None = None, **changes):
    decisions = []
    config = replace(Configuration(actor or Actor(), section), **changes)
    return grpo(config, decisions), {decision.option: decision for decision in decisions}


def test_pure_distillation_needs_no_rewards_and_takes_one_sample_per_prompt():
    algorithm, decisions = compose(teacher(rl_loss_weight=0.0, distill_loss_weight=0.5))
    assert algorithm.loss == DistillationTerm(0.5, has_baseline=True)
    assert algorithm.regularisers == (EntropyTerm(0.0),)
    assert not algorithm.needs_rewards
    assert algorithm.roles == {"teacher"}
    assert set(decisions) == {"teacher.rl_loss_weight", "teacher.baseline"}
    assert "MiniLLM (arXiv:2306.08543)" in decisions["teacher.rl_loss_weight"].reason


def test_pure_distillation_keeps_options_that_have_nothing_to_do_with_rewards():
    actor = Actor(kl_loss_coef=0.1, entropy_coef=0.01, overlong_filtering=True, loss_aggregation="sequence")
    actor.ppo_n_minibatches, actor.recompute_logprob = 3, True
    algorithm, decisions = compose(teacher(rl_loss_weight=0.0), actor, ref=ArchonEngineConfig())
    assert algorithm.regularisers == (EntropyTerm(0.01), KLTerm(0.1, "k3"))
    assert algorithm.filters == (DropTruncated(),)
    assert (algorithm.aggregation, algorithm.n_minibatches) == (SequenceMean(), 3)
    assert algorithm.replace_logprobs
    assert set(decisions) == {"teacher.rl_loss_weight", "teacher.baseline"}


def test_options_of_a_policy_loss_are_decisions_in_pure_distillation_and_errors_when_strict():
    pure = teacher(rl_loss_weight=0.0)
    _, decisions = compose(pure, Actor(eps_clip=0.3, dynamic_sampling=True))
    assert {"actor.eps_clip", "actor.dynamic_sampling"} <= set(decisions)
    with pytest.raises(ConfigError, match=r"actor\.eps_clip: found 0\.3; not used: .*the teacher alone"):
        compose(pure, Actor(eps_clip=0.3, archon=ArchonOptions(strict=True)))


def test_the_joint_objective_has_both_weights():
    groups = GenerationConfig(n_samples=4, max_new_tokens=16)
    algorithm, decisions = compose(teacher(), gconfig=groups)
    assert isinstance(algorithm.loss, ClippedPolicyTerm)
    assert algorithm.regularisers[-1] == DistillationTerm(0.005, has_baseline=True)
    plain, further = compose(teacher(baseline="none"), gconfig=groups)
    assert plain.regularisers[-1] == DistillationTerm(0.005)
    assert "teacher.baseline" not in further
    assert algorithm.needs_rewards
    assert algorithm.roles == {"teacher"}
    assert "AReaL minimises" in decisions["teacher.distill_loss_weight"].reason
    weighted, _ = compose(teacher(rl_loss_weight=0.5), gconfig=groups)
    assert weighted.loss == WeightedTerm(algorithm.loss, 0.5)
    assert weighted.fields == algorithm.fields


def test_sampling_options_that_training_does_not_have_are_decisions_in_pure_distillation_too():
    penalised = GenerationConfig(n_samples=1, frequency_penalty=0.5)
    _, decisions = compose(teacher(rl_loss_weight=0.0), Actor(recompute_logprob=True), gconfig=penalised)
    assert decisions["gconfig.frequency_penalty"].reason.endswith("so nothing corrects for it")
    _, decisions = compose(teacher(rl_loss_weight=0.0), Actor(use_decoupled_loss=True), gconfig=penalised)
    assert decisions["gconfig.frequency_penalty"].reason.endswith("log-probabilities corrects for it")


def test_the_teacher_has_the_temperature_of_sampling():
    warm = GenerationConfig(n_samples=1, temperature=0.7)
    algorithm, decisions = compose(teacher(rl_loss_weight=0.0), Actor(temperature=0.7), gconfig=warm)
    assert algorithm.temperature == 0.7
    assert decisions["teacher.temperature"].effective == "0.7"
    assert "teacher.temperature" not in compose(teacher(rl_loss_weight=0.0, temperature=0.7), gconfig=warm)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine_type": "rollout"},
            r"teacher\.rollout\.backend: found none with teacher\.engine_type=rollout, AReaL's default; set it to",
        ),
        ({"engine_type": "vllm"}, r"teacher\.engine_type: found 'vllm'; allowed are rollout, train"),
        ({"path": None}, r"teacher\.path: found none, and no teacher\.model_config"),
        ({"rl_loss_weight": -1.0}, r"teacher\.rl_loss_weight: found -1\.0; allowed are numbers from 0"),
        ({"distill_loss_weight": math.inf}, r"teacher\.distill_loss_weight: found inf"),
        (
            {"rl_loss_weight": 0.0, "distill_loss_weight": 0.0},
            r"teacher\.distill_loss_weight: found 0 with .*nothing to",
        ),
        ({"optimizer": None, "warm_start": WarmStartOptions(steps=2)}, r"teacher\.optimizer: found null with"),
    ],
)
def test_invalid_teachers_are_refused_before_anything_is_built(options, message):
    section = Teacher(**{"engine_type": "train", "path": "large-model", **options})
    problems = "\n".join(text for _, text in check_options(section, "teacher"))
    assert re.search(message, problems), problems


def test_the_type_is_areals_default():
    assert TeacherOptions() == TeacherOptions("rollout", None, False, 1.0, 0.005, "batch")
