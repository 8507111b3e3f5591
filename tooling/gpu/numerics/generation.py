"""The local engine on the device: greedy completions, and their log-probabilities against the trainer's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.loss import OutputRequest
from gpu.numerics.comparing import worst
from gpu.numerics.models import ModelName, build
from gpu.numerics.oracle import reference
from gpu.numerics.sampling import generate, prompts_of
from gpu.numerics.tolerances import BF16_LOGPROBS, FP32_LOGPROBS
from gpu.records import Check, Context, Outcome


def checks(context: Context) -> Iterator[Check]:
    """With and without experts, in both types."""
    for name in ("qwen3", "qwen3_moe"):
        for dtype in ("float32", "bfloat16"):
            yield Check(f"generation-{name}-{dtype}", partial(greedy, context, name, dtype))


def greedy(context: Context, name: ModelName, dtype: str) -> Outcome:
    """Tokens equal the reference's in fp32; in both types, log-probabilities equal those of a training pass."""
    expected = reference(name, context)
    # In bf16 a decode step and a training pass may send a token to different experts, unless it replays them.
    replays = name == "qwen3_moe" and dtype == "bfloat16"
    engine = build(name, context, path=expected.checkpoint, dtype=dtype, moe_routing_replay=replays)
    prompts = prompts_of(context)
    completions = generate(engine, context, with_experts=replays)
    sequences = [[*prompt, *completion.token_ids] for prompt, completion in zip(prompts, completions, strict=True)]
    batch = Batch.from_sequences(sequences)
    if replays:
        # A completion's last token is never fed back, so it went nowhere.
        routes = [torch.nn.functional.pad(c.routed_experts, (0, 0, 0, 0, 0, 1), value=-1) for c in completions]
        batch = batch.with_fields({ROUTED_EXPERTS: torch.cat(routes)})
    values = engine.forward_batch(batch, OutputRequest(("logprobs",)))["logprobs"].double().cpu()
    engine.close()
    differences = []
    for offset, prompt, completion in zip(batch.offsets, prompts, completions, strict=False):
        first = offset + len(prompt) - 1
        trained = values[first : first + len(completion.token_ids)]
        differences.append(float((trained - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max()))
    measured = {
        "log-probabilities": worst(differences),
        "other completions": sum(
            own.token_ids != theirs.token_ids for own, theirs in zip(completions, expected.completions, strict=True)
        ),
    }
    if dtype == "float32":
        return Outcome(measured, {"log-probabilities": FP32_LOGPROBS, "other completions": 0})
    # bf16 may prefer another token where two are nearly equal, and everything after it differs.
    return Outcome(measured, {"log-probabilities": BF16_LOGPROBS})
