"""Every registered policy loss, under every aggregation, and the value loss have the loss, gradients and metrics of one
process on every layout, in float64.

A loss enters this test by being registered (``archon_policy_losses``). Masks over the whole mini-batch are computed as
the trainer does, by a forward pass that the ranks share.
"""

from __future__ import annotations

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.spec import load_target
from archon_core.plugins import PolicyLossSpec
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.config import PolicyOptions, RejectionSamplingConfig
from archon_rl.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.objective import Objective
from archon_rl.losses.proximal import PROX_FRACTION
from archon_rl.losses.value import ValueTerm
from archon_rl.policy_losses import build_policy_loss
from archon_rl.trainer.sharing import SharedEngine
from archon_testing.worlds import run_world

TOLERANCE = 1e-9
LENGTHS = (6, 3, 9, 4, 8, 2, 7, 5)
PROMPTS = (2, 3, 4, 1, 5, 1, 2, 1)
"""The second sequence has no trained token."""
AGGREGATIONS = (TokenMean(), SequenceMean(), ConstantLength(9))
REJECTING = {"use_decoupled_loss": True, "rejection_sampling": RejectionSamplingConfig(level="sequence", upper=1.0)}


def cases() -> dict[str, tuple[PolicyOptions, object]]:
    """Options and aggregation: every loss with every aggregation, and with options that span a sequence or a batch."""
    found = {}
    for spec in registry().all(PolicyLossSpec):
        variants = {"plain": {}, "m2": {"m2_threshold": 0.01}}
        if spec.sequence_level:
            variants["sequence level"] = {"importance_sampling_level": "sequence"}
        if spec.decoupled:
            variants["rejecting"] = REJECTING
        for name, changes in variants.items():
            options = PolicyOptions(policy_loss=spec.name, eps_clip=0.1, eps_clip_higher=0.15, clip_cov_lower=0.0)
            options.clip_cov_ratio = options.kl_cov_ratio = 0.2
            for option, value in changes.items():
                setattr(options, option, value)
            for aggregation in AGGREGATIONS if name == "plain" else AGGREGATIONS[1:2]:
                found[f"{spec.name}, {name}, {type(aggregation).__name__}"] = (options, aggregation)
    return found


def make_engine(layout: str, *, role: str = "actor") -> SharedEngine:
    n_layers = 2 if role == "critic" else 1  # one for each of two stages
    model = {**load_target(registry().get("model", "qwen3").tiny_config)(), "num_hidden_layers": n_layers}
    config = ArchonEngineConfig(
        model_config=model,
        dtype="float64",
        optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0),
        mb_spec=MicroBatchSpec(n_mbs=2),
        archon=ArchonOptions(enable_compile=False),
        is_critic=role == "critic",
    )
    engine = assemble(config, role=role, layout=parse_layout(f"archon:{layout}"), seed=3, total_steps=None)
    engine.initialize()
    return SharedEngine(engine)


def make_batch(engine: SharedEngine) -> Batch:
    """Sampled near the model's probabilities, so that bounds let some tokens pass and stop others."""
    generator = torch.Generator().manual_seed(5)
    n_tokens = sum(LENGTHS)
    masks = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    ids = torch.randint(0, 100, (n_tokens,), generator=generator)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.cat(masks)})

    def noise() -> torch.Tensor:
        return 0.15 * torch.randn(n_tokens, generator=generator, dtype=torch.float64)

    proximal = engine.forward_batch(batch, OutputRequest())["logprobs"].double() + noise()
    return batch.with_fields(
        {
            "advantages": 7 * noise(),
            "prox_logprobs": proximal,
            "logprobs": proximal + noise(),
            PROX_FRACTION: torch.rand(n_tokens, generator=generator, dtype=torch.float64),
        }
    )


def make_value_batch(engine: SharedEngine) -> Batch:
    """Old values near the critic's, so that the clip range holds some."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(0, 100, (sum(LENGTHS),), generator=generator)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.rand(sum(LENGTHS), generator=generator) < 0.7})
    values = engine.forward_batch(batch, OutputRequest(("values",)))["values"].double()
    noise = torch.randn(2, sum(LENGTHS), generator=generator, dtype=torch.float64)
    return batch.with_fields({"values": values + 0.1 * noise[0], "returns": values + noise[1]})


def value_numbers(layout: str) -> dict[str, tuple[float, dict[str, float], dict[str, torch.Tensor]]]:
    """As ``numbers``, of the critic's loss."""
    engine = make_engine(layout, role="critic")
    batch, found = make_value_batch(engine), {}
    for name, term in {"plain": ValueTerm(), "clipped": ValueTerm(eps_clip=0.1)}.items():
        stats = engine.train_batch(batch, Objective((term,)))
        gradients = {parameter: whole(p.grad) for parameter, p in engine.engine.parameters.items()}
        found[name] = (stats.loss, {**stats.metrics, "norm": stats.gradient_norm}, gradients)
    return found


def whole(gradient: torch.Tensor) -> torch.Tensor:
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()


def numbers(layout: str) -> dict[str, tuple[float, dict[str, float], dict[str, torch.Tensor]]]:
    """Per case: loss, metrics and gradients. The learning rate is 0, so all cases see the same weights."""
    engine = make_engine(layout)
    batch = make_batch(engine)
    found = {}
    for name, (options, aggregation) in cases().items():
        loss = build_policy_loss(options)
        outputs = engine.forward_batch(batch, OutputRequest())
        prepared = batch.with_fields({mask.field: mask(outputs, batch) for mask in loss.masks})
        stats = engine.train_batch(prepared, Objective((loss.term, EntropyTerm(0.01)), aggregation))
        gradients = {parameter: whole(p.grad) for parameter, p in engine.engine.parameters.items()}
        found[name] = (stats.loss, dict(stats.metrics), gradients)
    return found


def assert_equal_numbers(found, expected) -> None:
    """``found`` has the gradients of this rank's parameters."""
    assert found.keys() == expected.keys()
    for name, (loss, metrics, gradients) in expected.items():
        other_loss, other_metrics, other_gradients = found[name]
        assert other_loss == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE), name
        assert other_metrics == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE), name
        least = 1e-6 * max(float(g.abs().max()) for g in gradients.values())
        for parameter, other in other_gradients.items():
            gradient = gradients[parameter]
            scale = max(float(gradient.abs().max()), least)
            difference = float((other - gradient).abs().max())
            assert difference <= TOLERANCE * scale, f"{name}: {parameter}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [pytest.param(layout, marks=pytest.mark.wide) for layout in ("d2", "c2", "t2")])
def test_every_loss_has_the_numbers_of_one_process(layout):
    expected = numbers("d1")
    assert len(expected) > 3 * len(registry().all(PolicyLossSpec))
    for found in run_world(numbers, 2, (layout,), time_limit=300):
        assert_equal_numbers(found, expected)
        assert all(found[name][2].keys() == gradients.keys() for name, (_, _, gradients) in expected.items())


@pytest.mark.wide
@pytest.mark.parametrize(("layout", "n_ranks"), [("c2", 2), ("p2", 2), ("d2t2", 4)])
def test_the_value_loss_has_the_numbers_of_one_process(layout, n_ranks):
    expected = value_numbers("d1")
    assert 0.1 < expected["clipped"][1]["value_clip_fraction"] < 0.9
    assert expected["clipped"][2]["head.weight"].abs().max() > 1e-3
    parts = run_world(value_numbers, n_ranks, (layout,), time_limit=120)
    for found in parts:
        assert_equal_numbers(found, expected)
    assert set().union(*(found["plain"][2] for found in parts)) == set(expected["plain"][2])
