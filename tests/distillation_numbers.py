"""A student and a teacher of another size, and the numbers of distillation steps with them, for tests that compare
layouts and places of the teacher."""

from __future__ import annotations

from collections.abc import Callable
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

TEMPERATURE = 0.8
VOCABULARY = 128
LENGTHS = (6, 3, 9, 4, 8, 2, 7, 5)
PROMPTS = (2, 3, 4, 1, 5, 1, 2, 1)
"""The second sequence has no trained token."""
OBJECTIVES = {
    "pure": Objective((DistillationTerm(0.7), EntropyTerm(0.01)), TokenMean(), temperature=TEMPERATURE),
    "joint": Objective(
        (WeightedTerm(ClippedPolicyTerm(), 2.0), DistillationTerm(0.3, has_baseline=True)), SequenceMean(), TEMPERATURE
    ),
}
SIZES = {"actor": {}, "teacher": {"num_hidden_layers": 3, "intermediate_size": 96}}


def make_engine(role: str, layout: str, *, dtype: str = "float64", offload: bool = False) -> SharedEngine:
    # Adam divides by gradients that may be near zero, which in fp32 hides what is compared over several steps.
    kind = "sgd" if dtype == "float32" else "adamw"
    model = {**load_target(registry().get("model", "qwen3").tiny_config)(), "num_hidden_layers": 2, **SIZES[role]}
    config = ArchonEngineConfig(
        model_config=model,
        dtype=dtype,
        optimizer=OptimizerConfig(kind, lr=1e-2, weight_decay=0.1, gradient_clipping=0.5) if role == "actor" else None,
        mb_spec=MicroBatchSpec(n_mbs=2),
        archon=ArchonOptions(enable_compile=False),
    )
    engine = assemble(config, role=role, layout=parse_layout(f"archon:{layout}"), seed=3, total_steps=3)
    engine.initialize()
    if offload:
        engine.offload()
    return SharedEngine(engine, offloads=offload)


def make_batch(actor: SharedEngine, teacher: Any, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(5 + step)
    n_tokens = sum(LENGTHS)
    masks = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    ids = torch.randint(0, 100, (n_tokens,), generator=generator)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.cat(masks)})
    request = OutputRequest(("logprobs",), temperature=TEMPERATURE)
    noise = torch.randn(2, n_tokens, generator=generator, dtype=torch.float64)
    sampled = actor.forward_batch(batch, request)["logprobs"].double() + 0.1 * noise[1]
    logprobs = teacher.forward_batch(batch, request)["logprobs"].double()
    baseline = sequence_baseline(sampled - logprobs, batch)
    fields = {"advantages": noise[0], "logprobs": sampled, TEACHER_LOGPROBS: logprobs, TEACHER_BASELINE: baseline}
    return batch.with_fields(fields)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def numbers(
    make_actor: Callable[[], SharedEngine], make_teacher: Callable[[SharedEngine], Any], *, n_steps: int = 1
) -> dict[str, Any]:
    """Per objective and step: the teacher's log-probabilities, and this rank's scalars, gradients and weights."""
    found: dict[str, Any] = {}
    for name, objective in OBJECTIVES.items():
        actor = make_actor()
        teacher = make_teacher(actor)
        for step in range(n_steps):
            batch = make_batch(actor, teacher, step)
            stats = actor.train_batch(batch, objective)
            scalars = {"loss": stats.loss, "gradient_norm": stats.gradient_norm, **stats.metrics}
            parameters = actor.engine.parameters.items()
            gradients = {parameter: whole(p.grad) for parameter, p in parameters}
            weights = {parameter: whole(p) for parameter, p in parameters}
            found[f"{name} {step}"] = (batch.token_fields[TEACHER_LOGPROBS], scalars, gradients, weights)
    return found


def compare(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-9) -> None:
    """Compare one rank's numbers with those of one process."""
    for name, (logprobs, scalars, gradients, weights) in expected.items():
        other_logprobs, other_scalars, other_gradients, other_weights = found[name]
        torch.testing.assert_close(other_logprobs, logprobs, rtol=tolerance, atol=tolerance)
        assert other_scalars == pytest.approx(scalars, rel=tolerance, abs=tolerance), name
        for wanted, others in ((gradients, other_gradients), (weights, other_weights)):
            least = 1e-6 * max(float(tensor.abs().max()) for tensor in wanted.values())
            assert others, "a rank has parameters"
            for parameter, tensor in others.items():
                scale = max(float(wanted[parameter].abs().max()), least)
                assert float((tensor - wanted[parameter]).abs().max()) <= tolerance * scale, f"{name}: {parameter}"


def compare_all(ranks: list[dict[str, Any]], expected: dict[str, Any], tolerance: float = 1e-9) -> None:
    """``compare`` every rank; together they have every parameter."""
    for found in ranks:
        compare(found, expected, tolerance)
    for name, (_, _, gradients, _) in expected.items():
        assert set().union(*(found[name][2] for found in ranks)) == set(gradients), "every parameter was compared"
