"""Tokens outside the loss mask change nothing: no loss, gradient, metric or advantage, whatever value stands there.

The cases come from the registered algorithms and their options, so a new loss is tested as soon as an option builds it;
a term or aggregation that no case builds fails the last test.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from dataclasses import dataclass

import pytest
import torch

import archon_rl
from archon_core.contracts.batch import Batch
from archon_core.plugins import registry
from archon_rl.algorithm import Algorithm
from archon_rl.config import AGGREGATIONS, KL_ESTIMATORS, PROX_LOGP_METHODS, REJECTION_METRICS
from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.covariance import COV_KEPT, COV_PENALISED
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.m2po import M2_KEPT
from archon_rl.losses.masking import mask_inputs
from archon_rl.losses.objective import Objective, TermValues
from archon_rl.losses.policy import ClippedPolicyTerm

REFERENCE = "ref={}"
DECOUPLED = "actor.use_decoupled_loss=true"
POLICY_OPTIONS = (
    (),
    *((f"actor.loss_aggregation={name}",) for name in AGGREGATIONS),
    *((REFERENCE, "actor.kl_loss_coef=0.1", f"actor.kl_loss_estimator={name}") for name in KL_ESTIMATORS),
    *((REFERENCE, "actor.kl_ctl=0.1", f"actor.kl_estimator={name}") for name in KL_ESTIMATORS),
    *((DECOUPLED, f"actor.rejection_sampling.metric={name}") for name in REJECTION_METRICS),
    *(
        (DECOUPLED, "actor.rejection_sampling.level=sequence", f"actor.rejection_sampling.agg={name}")
        for name in ("sum", "mean", "max")
    ),
    (DECOUPLED, "actor.rejection_sampling.action=clamp"),
    *((DECOUPLED, f"actor.prox_logp_method={name}") for name in PROX_LOGP_METHODS),
    ("actor.importance_sampling_level=sequence",),
    ("actor.m2_threshold=0.04", "actor.eps_clip=0.0"),
    *((f"actor.policy_loss={spec.name}", "actor.eps_clip_higher=0.3") for spec in registry().all("policy_loss")),
    ("actor.c_clip=1.5", "actor.eps_clip_higher=0.28"),
    ("actor.adv_norm={}",),
    ("actor.entropy_coef=0.01",),
    (REFERENCE, "actor.kl_ctl=0.1", "actor.gae_timestep_unit=turn"),
    ("actor.gae_lambda=length_adaptive", "actor.gae_lambda_kwargs={alpha: 0.05}"),
    ("actor.reward_norm={mean_level: group, std_level: null, mean_weights: length}",),
    ("actor.reward_norm={mean_level: group, std_level: group, scale: mean}",),
    (
        REFERENCE,
        "actor.kl_loss_coef=0.1",
        "actor.kl_ctl=0.1",
        "actor.use_decoupled_loss=true",
        "actor.c_clip=1.5",
        "actor.entropy_coef=0.01",
        "actor.adv_norm={}",
        "actor.mask_no_eos_with_zero=true",
    ),
)
CRITIC_OPTIONS = (("critic={}", "actor.adv_norm={}"), ("critic.eps_clip=null", "critic.gae_lambda=0.5"))
"""Of algorithms with a critic, whose policy losses are those of the others."""
BOOLEAN_FIELDS = {M2_KEPT, COV_KEPT, COV_PENALISED}
EXTREMES = (1e4, -1e4, math.inf, -math.inf, math.nan)
MASKS = ([0, 1, 1, 0], [0, 0], [1, 0, 1, 0, 0], [0, 1, 0])
"""One sequence is not trained on at all."""
MASK = torch.tensor([bool(m) for row in MASKS for m in row])


@pytest.fixture
def algorithms(run) -> dict[str, Algorithm]:
    """Every registered algorithm with every option that changes its loss."""
    found = {}
    for spec in registry().all("algorithm"):
        schemas = {section.path for section in spec.config}
        variants = CRITIC_OPTIONS if "critic" in schemas else POLICY_OPTIONS if "actor" in schemas else ((),)
        for options in variants:
            config = run.config(f"algorithm={spec.name}", *options)
            algorithm = spec.load()(config, [])
            if isinstance(algorithm, Algorithm):
                found[" ".join((spec.name, *options))] = algorithm
    return found


def batch_with(fields) -> Batch:
    """Four sequences with plausible values at trained tokens and 0 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    values = {name: _field(name, generator) for name in sorted(fields) if name != "loss_mask"}
    return Batch(
        input_ids=torch.zeros(len(MASK), dtype=torch.int64),
        lengths=tuple(map(len, MASKS)),
        token_fields={"loss_mask": MASK, **values},
        sequence_fields={
            "rewards": torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64),
            "group": torch.tensor([0, 0, 1, 1]),
            "truncated": torch.tensor([False, True, False, False]),
        },
    )


def _field(name: str, generator: torch.Generator) -> torch.Tensor:
    if name in BOOLEAN_FIELDS:
        return torch.rand(len(MASK), generator=generator) < 0.7
    return _plausible(generator)


def _plausible(generator: torch.Generator) -> torch.Tensor:
    values = -2 + 0.5 * torch.randn(len(MASK), generator=generator, dtype=torch.float64)
    return torch.where(MASK, values, 0)


@dataclass(frozen=True)
class Result:
    """Everything that an engine takes from a loss."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]

    def assert_equal(self, other: Result, case: str) -> None:
        assert torch.equal(self.loss, other.loss), case
        assert self.metrics == other.metrics, case
        for name, gradient in self.gradients.items():
            assert torch.equal(gradient, other.gradients[name]), f"{case}: gradient of {name}"
            assert not gradient[~MASK].any(), f"{case}: gradient of {name} at masked tokens"


def evaluate(objective: Objective, outputs: dict[str, torch.Tensor], batch: Batch) -> Result:
    leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    weights = objective.weights(batch)
    sums = objective(leaves, batch)
    loss = torch.stack([term / weights[unit] for unit, term in sums.terms.items()]).sum()
    loss.backward()
    gradients = {name: torch.zeros_like(v) if v.grad is None else v.grad for name, v in leaves.items()}
    metrics = {name: float(value / weights[unit]) for name, (unit, value) in sums.metrics.items()}
    return Result(loss.detach(), gradients, metrics)


def poisoned(values: torch.Tensor, extreme: float) -> torch.Tensor:
    return torch.where(MASK, values, extreme)


def test_no_value_at_masked_tokens_reaches_loss_gradient_or_metrics_of_any_algorithm(algorithms):
    objectives = {f"{name}, {role}": loss for name, a in algorithms.items() for role, loss in a.objectives.items()}
    for name, objective in objectives.items():
        generator = torch.Generator().manual_seed(1)
        batch = batch_with(objective.fields)
        outputs = {output: _plausible(generator) for output in objective.request.names}
        clean = evaluate(objective, outputs, batch)
        assert torch.isfinite(clean.loss), name
        assert all(torch.isfinite(gradient).all() for gradient in clean.gradients.values()), name
        fields = {field: v for field, v in batch.token_fields.items() if v.is_floating_point()}
        for extreme in EXTREMES:
            bad_fields = {field: poisoned(values, extreme) for field, values in fields.items()}
            bad_outputs = {output: poisoned(values, extreme) for output, values in outputs.items()}
            cases = {
                "everything": (bad_outputs, bad_fields),
                **{f"output {output}": ({**outputs, output: v}, {}) for output, v in bad_outputs.items()},
                **{f"field {field}": (outputs, {field: v}) for field, v in bad_fields.items()},
            }
            for place, (changed_outputs, changed_fields) in cases.items():
                result = evaluate(objective, changed_outputs, batch.with_fields(changed_fields))
                result.assert_equal(clean, f"{name}: {extreme} in {place}")


def test_no_value_at_masked_tokens_reaches_the_advantages_of_any_algorithm(algorithms):
    estimators = {name: a.advantages for name, a in algorithms.items() if a.advantages is not None}
    assert estimators
    for name, estimator in estimators.items():
        batch = batch_with(estimator.fields)
        clean = estimator(batch)
        for extreme in EXTREMES:
            fields = {f: poisoned(v, extreme) for f, v in batch.token_fields.items() if f != "loss_mask"}
            assert torch.equal(estimator(batch.with_fields(fields)), clean), f"{name}: {extreme}"


def test_every_term_and_aggregation_of_the_package_is_built_by_some_case(algorithms):
    losses = [loss for a in algorithms.values() for loss in a.objectives.values()]
    built = {type(part) for loss in losses for part in (*loss.terms, loss.aggregation)}
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(archon_rl.__path__, "archon_rl.")]
    classes = {c for module in modules for _, c in inspect.getmembers(module, inspect.isclass)}
    parts = {
        c
        for c in classes
        if c.__module__.startswith("archon_rl.")
        and not getattr(c, "_is_protocol", False)
        and not inspect.isabstract(c)
        and any(_has(c, names) for names in (("outputs", "fields", "name"), ("weight", "sum")))
    }
    assert {c.__name__ for c in parts} >= {"ClippedPolicyTerm", "KLTerm", "EntropyTerm", "NegativeLogLikelihood"}
    assert parts <= built, "add options that build these to POLICY_OPTIONS"


def _has(cls: type, names: tuple[str, ...]) -> bool:
    return all(name in dir(cls) or name in getattr(cls, "__annotations__", {}) for name in names)


@dataclass(frozen=True)
class Fragile:
    """A term whose value and derivative are infinite or NaN almost everywhere outside the mask, and at 0."""

    name: str = "fragile"
    outputs: tuple[str, ...] = ("logprobs", "values")
    fields: frozenset[str] = frozenset({"returns"})

    def __call__(self, outputs, micro_batch) -> TermValues:
        ratio = (outputs["logprobs"] - micro_batch.token_fields["returns"]).exp()
        error = outputs["values"].square().sqrt() + ratio / outputs["values"] + outputs["values"].abs().log()
        return TermValues(error * ratio, {"error": error.detach()})


def test_a_term_inherits_the_masking_from_the_objective():
    objective, generator = Objective((Fragile(),)), torch.Generator().manual_seed(1)
    batch = batch_with({"returns"})
    outputs = {name: _plausible(generator) for name in Fragile.outputs}
    clean = evaluate(objective, outputs, batch)
    assert all(torch.isfinite(gradient).all() for gradient in clean.gradients.values())
    for extreme in EXTREMES:
        bad = {name: poisoned(values, extreme) for name, values in outputs.items()}
        changed = batch.with_fields({"returns": poisoned(batch.token_fields["returns"], extreme)})
        evaluate(objective, bad, changed).assert_equal(clean, str(extreme))


def test_masking_keeps_trained_values_integers_and_sequence_fields_and_covers_every_dimension():
    fields = {
        "loss_mask": MASK,
        "routed_experts": torch.arange(len(MASK))[:, None].expand(-1, 2),
        "teacher": torch.full((len(MASK), 3), math.nan),
    }
    batch = Batch(torch.zeros(len(MASK), dtype=torch.int64), tuple(map(len, MASKS)), fields, {"r": torch.ones(4)})
    outputs, masked = mask_inputs({"logits": torch.full((len(MASK), 5), 7.0)}, batch)
    assert torch.equal(outputs["logits"][MASK], torch.full((int(MASK.sum()), 5), 7.0))
    assert not outputs["logits"][~MASK].any()
    assert not masked.token_fields["teacher"][~MASK].any()
    assert masked.token_fields["teacher"][MASK].isnan().all()
    assert torch.equal(masked.token_fields["routed_experts"], fields["routed_experts"])
    assert torch.equal(masked.sequence_fields["r"], torch.ones(4))


HUGE = 1e5
"""A log-ratio whose exponential overflows float64."""


@pytest.mark.parametrize(
    ("term", "advantage", "log_ratio", "expected"),
    [
        (ClippedPolicyTerm(eps_clip=0.2), 2.0, HUGE, -2.4),
        (ClippedPolicyTerm(), 0.0, HUGE, 0.0),
        (ClippedPolicyTerm(c_clip=3.0), -2.0, HUGE, 6.0),
        (ClippedPolicyTerm(behaviour=BehaviourWeight()), 0.0, HUGE, 0.0),
    ],
    ids=["clipped above", "no advantage", "dual clip", "decoupled without advantage"],
)
def test_a_trained_token_whose_loss_is_constant_has_gradient_zero_even_where_its_ratio_overflows(
    term, advantage, log_ratio, expected
):
    fields = {
        "loss_mask": torch.tensor([True]),
        "advantages": torch.tensor([advantage], dtype=torch.float64),
        "logprobs": torch.tensor([-log_ratio], dtype=torch.float64),
        "prox_logprobs": torch.tensor([-log_ratio], dtype=torch.float64),
    }
    logprobs = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    sums = Objective((term,))({"logprobs": logprobs}, Batch(torch.zeros(1, dtype=torch.int64), (1,), fields))
    sums.terms["token"].backward()
    assert sums.terms["token"].item() == pytest.approx(expected)
    assert logprobs.grad.item() == 0


def test_a_token_whose_behaviour_weight_exceeds_the_cap_is_dropped_even_where_its_ratio_overflows():
    fields = {
        "loss_mask": torch.tensor([True, True]),
        "advantages": torch.tensor([-1.0, 1.0], dtype=torch.float64),
        "logprobs": torch.tensor([-3 * HUGE, 0.0], dtype=torch.float64),
        "prox_logprobs": torch.tensor([-HUGE, 0.0], dtype=torch.float64),
    }
    logprobs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    term = ClippedPolicyTerm(behaviour=BehaviourWeight(RejectionSampling(upper=5.0)))
    sums = Objective((term,))({"logprobs": logprobs}, Batch(torch.zeros(2, dtype=torch.int64), (2,), fields))
    sums.terms["token"].backward()
    assert logprobs.grad.tolist() == [0.0, -1.0]


def test_an_entropy_that_is_only_reported_cannot_reach_the_loss():
    batch = Batch(torch.zeros(1, dtype=torch.int64), (1,), {"loss_mask": torch.tensor([True])})
    sums = Objective((EntropyTerm(0.0),))({"entropy": torch.tensor([math.nan])}, batch)
    assert float(sums.terms["token"]) == 0
