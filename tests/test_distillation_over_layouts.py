"""Distillation, alone and beside a policy loss, has the loss, gradients, norm and weights of one process on every
layout of actor and teacher, in float64. The teacher has another size than the actor, and is offloaded between uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.spec import load_target
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.losses.aggregation import SequenceMean, TokenMean
from archon_rl.losses.distillation import (
    TEACHER_BASELINE,
    TEACHER_LOGPROBS,
    DistillationTerm,
    WeightedTerm,
    sequence_baseline,
)
from archon_rl.losses.entropy import EntropyTerm
from archon_rl.losses.objective import Objective
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.trainer.sharing import SharedEngine
from archon_testing.worlds import run_world

TOLERANCE = 1e-9
LENGTHS = (6, 3, 9, 4, 8, 2, 7, 5)
PROMPTS = (2, 3, 4, 1, 5, 1, 2, 1)
"""The second sequence has no trained token."""
OBJECTIVES = {
    "pure": Objective((DistillationTerm(0.7), EntropyTerm(0.01)), TokenMean(), temperature=0.8),
    "joint": Objective(
        (WeightedTerm(ClippedPolicyTerm(), 2.0), DistillationTerm(0.3, has_baseline=True)), SequenceMean(), 0.8
    ),
}
SIZES = {"actor": {}, "teacher": {"num_hidden_layers": 3, "intermediate_size": 96}}


def make_engine(role: str, layout: str) -> SharedEngine:
    model = {**load_target(registry().get("model", "qwen3").tiny_config)(), "num_hidden_layers": 2, **SIZES[role]}
    config = ArchonEngineConfig(
        model_config=model,
        dtype="float64",
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1, gradient_clipping=0.5) if role == "actor" else None,
        mb_spec=MicroBatchSpec(n_mbs=2),
        archon=ArchonOptions(enable_compile=False),
    )
    engine = assemble(config, role=role, layout=parse_layout(f"archon:{layout}"), seed=3, total_steps=2)
    engine.initialize()
    if role == "teacher":
        engine.offload()
    return SharedEngine(engine, offloads=role == "teacher")


def make_batch(actor: SharedEngine, teacher: SharedEngine) -> Batch:
    generator = torch.Generator().manual_seed(5)
    n_tokens = sum(LENGTHS)
    masks = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    ids = torch.randint(0, 100, (n_tokens,), generator=generator)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.cat(masks)})
    request = OutputRequest(("logprobs",), temperature=0.8)
    noise = torch.randn(2, n_tokens, generator=generator, dtype=torch.float64)
    sampled = actor.forward_batch(batch, request)["logprobs"].double() + 0.1 * noise[1]
    logprobs = teacher.forward_batch(batch, request)["logprobs"].double()
    baseline = sequence_baseline(sampled - logprobs, batch)
    fields = {"advantages": noise[0], "logprobs": sampled, TEACHER_LOGPROBS: logprobs, TEACHER_BASELINE: baseline}
    return batch.with_fields(fields)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def numbers(actor_layout: str, teacher_layout: str) -> dict[str, Any]:
    """The teacher's log-probabilities, and per objective one step's scalars, gradients and weights of this rank."""
    found: dict[str, Any] = {}
    for name, objective in OBJECTIVES.items():
        actor, teacher = make_engine("actor", actor_layout), make_engine("teacher", teacher_layout)
        batch = make_batch(actor, teacher)
        stats = actor.train_batch(batch, objective)
        scalars = {"loss": stats.loss, "gradient_norm": stats.gradient_norm, **stats.metrics}
        parameters = actor.engine.parameters.items()
        gradients = {parameter: whole(p.grad) for parameter, p in parameters}
        weights = {parameter: whole(p) for parameter, p in parameters}
        found[name] = (batch.token_fields[TEACHER_LOGPROBS], scalars, gradients, weights)
    return found


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, (logprobs, scalars, gradients, weights) in expected.items():
        other_logprobs, other_scalars, other_gradients, other_weights = found[name]
        torch.testing.assert_close(other_logprobs, logprobs, rtol=TOLERANCE, atol=TOLERANCE)
        assert other_scalars == pytest.approx(scalars, rel=TOLERANCE, abs=TOLERANCE), name
        for wanted, others in ((gradients, other_gradients), (weights, other_weights)):
            least = 1e-6 * max(float(tensor.abs().max()) for tensor in wanted.values())
            assert others, "a rank has parameters"
            for parameter, tensor in others.items():
                scale = max(float(wanted[parameter].abs().max()), least)
                assert float((tensor - wanted[parameter]).abs().max()) <= TOLERANCE * scale, f"{name}: {parameter}"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found = numbers("d1", "d1")
    for _, scalars, _, _ in found.values():
        assert abs(scalars["distill_loss"]) > 1e-3
    return found


LAYOUTS = [("d2", "t2"), ("t2", "d2"), ("c2", "p2"), ("p2", "c2")]


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize(("actor", "teacher"), LAYOUTS, ids=lambda layout: layout)
def test_distillation_has_the_numbers_of_one_process(expected, actor, teacher):
    ranks = run_world(numbers, 2, (actor, teacher), time_limit=300)
    for found in ranks:
        compare(found, expected)
    for name, (_, _, gradients, _) in expected.items():
        assert set().union(*(found[name][2] for found in ranks)) == set(gradients), "every parameter was compared"


def test_the_comparison_notices_a_divisor_per_micro_batch(expected, monkeypatch):
    """AReaL divides the KL by the tokens of each micro-batch."""

    def divided_here(self, outputs, micro_batch):
        result = term(self, outputs, micro_batch)
        return type(result)(result.values / micro_batch.token_fields["loss_mask"].sum(), result.metrics)

    term = DistillationTerm.__call__
    monkeypatch.setattr(DistillationTerm, "__call__", divided_here)
    with pytest.raises(AssertionError):
        compare(numbers("d1", "d1"), expected)
