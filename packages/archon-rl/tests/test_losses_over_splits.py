"""Every registered policy loss, and every other term, under every aggregation, gives the same loss, gradient and
metrics for every split of a batch into micro-batches.

A loss enters these tests by being registered (``archon_policy_losses``). ``tests/test_losses_over_layouts.py`` compares
layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from table_model import TableModel, evaluate

from archon_core.contracts.batch import Batch
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.config import AGGREGATIONS, REJECTION_METRICS, PolicyOptions, RejectionSamplingConfig
from archon_rl.losses.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.distillation import DistillationTerm
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.kl import KLTerm
from archon_rl.losses.objective import Objective, TokenTerm
from archon_rl.losses.policy_term import PolicyLoss
from archon_rl.losses.proximal import PROX_FRACTION
from archon_rl.losses.value import ValueTerm
from archon_rl.policy_losses import build_policy_loss

TOLERANCE = 1e-9
VOCABULARY = 13
LENGTHS = (7, 3, 11, 5, 9, 2, 8)
PROMPTS = (2, 3, 4, 1, 5, 1, 2)
"""Tokens of each prompt; the second sequence has no trained token."""
SPLITS = (
    [[0, 1, 2], [3, 4, 5, 6]],
    [[6, 0], [5, 2], [1], [4, 3]],
    [[i] for i in range(len(LENGTHS))],
    [list(reversed(range(len(LENGTHS))))],
)
AGGREGATION_TYPES: dict[str, Aggregation] = {
    "token": TokenMean(),
    "sequence": SequenceMean(),
    "constant": ConstantLength(9),
}


@dataclass(frozen=True)
class Variant:
    """Options that change what any loss computes, and what a loss needs to take them."""

    name: str
    options: dict = field(default_factory=dict)
    decoupled: bool = False
    sequence_level: bool = False

    def suits(self, spec: PolicyLossSpec) -> bool:
        return (spec.decoupled or not self.decoupled) and (spec.sequence_level or not self.sequence_level)


def rejecting(name: str, **bounds) -> Variant:
    return Variant(name, {"rejection_sampling": RejectionSamplingConfig(**bounds)}, decoupled=True)


BOUNDS = {
    "ratio": (1.1, 0.9, 0.97, 1.13),
    "kl_k1": (0.1, 0.0, 0.0, 0.13),
    "kl_k2": (0.01, 0.03, 0.01, 0.012),
    "kl_k3": (0.01, 0.03, 0.01, 0.012),
    "binary_kl": (0.0005, 0.002, 0.00055, 0.0007),
}
"""Metric -> upper bounds of tokens, and of the sum, mean and maximum of sequences, that some exceed."""

VARIANTS = (
    Variant("plain"),
    Variant("sequence level", {"importance_sampling_level": "sequence"}, sequence_level=True),
    Variant("m2", {"m2_threshold": 0.01}),
    Variant("m2 without clipping", {"m2_threshold": 0.01, "eps_clip": 0.0}),
    Variant("dual clip", {"c_clip": 1.1}),
    Variant("decoupled", decoupled=True),
    Variant("log-linear", {"prox_logp_method": "loglinear"}, decoupled=True),
    Variant("reused", {"prox_logp_method": "reuse_train_logp"}, decoupled=True),
    Variant("approximations", {"prox_logp_method": "metrics"}, decoupled=True),
    rejecting("clamped", action="clamp", upper=1.05, lower=0.9),
    rejecting("clamped sequences", action="clamp", level="sequence", upper=1.02, lower=0.94),
    *(rejecting(f"rejected by {metric}", metric=metric, upper=bounds[0]) for metric, bounds in BOUNDS.items()),
    *(
        rejecting(f"sequences rejected by {metric} {agg}", metric=metric, agg=agg, level="sequence", upper=upper)
        for metric, bounds in BOUNDS.items()
        for agg, upper in zip(("sum", "mean", "max"), bounds[1:], strict=True)
    ),
)


def build(spec: PolicyLossSpec, variant: Variant) -> PolicyLoss:
    options = PolicyOptions(policy_loss=spec.name, ppo_n_minibatches=1, use_decoupled_loss=variant.decoupled)
    options.eps_clip, options.eps_clip_higher, options.clip_cov_lower = 0.1, 0.15, 0.0
    options.clip_cov_ratio = options.kl_cov_ratio = 0.2
    options.dppo_mask_low = options.dppo_mask_high = 0.01
    for name, value in variant.options.items():
        setattr(options, name, value)
    return build_policy_loss(options)


def make_batch() -> Batch:
    """Sampled near the table's probabilities, so that some tokens are inside of every bound and some outside."""
    generator = torch.Generator().manual_seed(2)
    n_tokens = sum(LENGTHS)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(n_tokens, generator=generator, dtype=torch.float64)

    trained = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    ids = torch.randint(VOCABULARY, (n_tokens,), generator=generator)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.cat(trained)})
    with torch.no_grad():
        outputs = TableModel(VOCABULARY)(batch)
    current, proximal = outputs["logprobs"], outputs["logprobs"] + noise(0.15)
    return batch.with_fields(
        {
            "advantages": torch.where(torch.arange(n_tokens) % 7 == 0, 0.0, noise(1.0)),
            "prox_logprobs": proximal,
            "logprobs": proximal + noise(0.15),
            "ref_logprobs": current + noise(0.3),
            "teacher_logprobs": current + noise(0.3),
            "teacher_baseline": noise(0.3),
            PROX_FRACTION: torch.rand(n_tokens, generator=generator, dtype=torch.float64),
            "values": outputs["values"] + noise(0.3),
            "returns": outputs["values"] + noise(0.5),
        }
    )


def prepared(batch: Batch, loss: PolicyLoss) -> Batch:
    """With the masks over the whole batch, as the trainer adds them before an update."""
    with torch.no_grad():
        outputs = TableModel(VOCABULARY)(batch)
    return batch.with_fields({mask.field: mask(outputs, batch) for mask in loss.masks})


CASES = {
    f"{spec.name}, {variant.name}": (spec, variant)
    for spec in registry().all(PolicyLossSpec)
    for variant in VARIANTS
    if variant.suits(spec)
}


OTHER_TERMS: dict[str, TokenTerm] = {
    "values": ValueTerm(),
    "clipped values": ValueTerm(eps_clip=0.2),
    "distillation": DistillationTerm(0.5),
    "distillation with a baseline": DistillationTerm(0.5, has_baseline=True),
}
"""Terms that are no policy losses."""


@pytest.mark.parametrize("case", CASES)
def test_no_split_changes_loss_gradient_or_metrics(case):
    batch, loss = make_batch(), build(*CASES[case])
    assert_equal_over_splits(prepared(batch, loss), (loss.term, EntropyTerm(0.01), KLTerm(0.1)))


@pytest.mark.parametrize("term", OTHER_TERMS)
def test_no_split_changes_what_other_terms_compute(term):
    assert_equal_over_splits(make_batch(), (OTHER_TERMS[term],))


def assert_equal_over_splits(batch: Batch, terms: tuple[TokenTerm, ...]) -> None:
    for aggregation in AGGREGATIONS:
        objective = Objective(terms, AGGREGATION_TYPES[aggregation])
        value, gradient, metrics = evaluate(TableModel(VOCABULARY), objective, batch, [list(range(len(LENGTHS)))])
        assert gradient.abs().max() > 1e-4
        for parts in SPLITS:
            other, other_gradient, other_metrics = evaluate(TableModel(VOCABULARY), objective, batch, parts)
            assert float(other) == pytest.approx(float(value), rel=TOLERANCE, abs=TOLERANCE)
            assert (other_gradient - gradient).abs().max() <= TOLERANCE * gradient.abs().max()
            assert other_metrics == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE)


def test_every_metric_has_bounds():
    assert set(BOUNDS) == set(REJECTION_METRICS)


def test_clipping_holds_some_values_back_and_leaves_some():
    objective = Objective((OTHER_TERMS["clipped values"],))
    *_, metrics = evaluate(TableModel(VOCABULARY), objective, make_batch(), [list(range(len(LENGTHS)))])
    assert 0.1 < metrics["value_clip_fraction"] < 0.9


def test_bounds_and_masks_take_some_tokens_out_and_leave_some():
    """Otherwise the cases would compare less than they seem to."""
    for name, (spec, variant) in CASES.items():
        loss = build(spec, variant)
        batch = prepared(make_batch(), loss)
        *_, metrics = evaluate(TableModel(VOCABULARY), Objective((loss.term,)), batch, [list(range(len(LENGTHS)))])
        shares = [n for n in metrics if n in ("clip_fraction", "behave_masked", "behave_clamped", "divergence_masked")]
        shares += [n for n in metrics if n.endswith(("_kept_fraction", "_penalised_fraction"))]
        expected = [n for n in shares if n != "clip_fraction" or variant.name == "plain"]
        for share in expected:
            assert 0 < metrics[share] < 1 - 1e-9, f"{name}: {share} = {metrics[share]}"
