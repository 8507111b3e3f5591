"""Tokens per second of the local engine, beside ``generate`` of transformers on the same shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.plugins import InferenceEngineSpec, registry
from gpu.records import Check, Context, Outcome
from gpu.speed import archon, rival, shapes
from gpu.speed.timing import Timing, free_memory, time_calls

RATIO_GOAL = 1.5
RUNS = 2


@dataclass(frozen=True)
class Load:
    """What is generated.

    Attributes:
        prompts: how many, of ``prompt_length`` tokens.
        new_tokens: for each.
    """

    prompts: int
    prompt_length: int
    new_tokens: int


LOADS = {"cuda": Load(128, 256, 96), "cpu": Load(8, 16, 8)}


def checks(context: Context) -> Iterator[Check]:
    """Ours, then theirs."""
    found: dict[str, float] = {}
    yield Check("local", partial(local, context, found))
    yield Check("transformers", partial(transformers, context, found))


def local(context: Context, found: dict[str, float]) -> Outcome:
    """Sampled completions, all of full length."""
    (config, _), load = shapes.dense(context.device), LOADS[context.device]
    free_memory(context.device)
    trainer = archon.build(config, context.device, trained=False, compiled=False)
    engine = registry().get(InferenceEngineSpec, "local").load()(RolloutConfig(), trainer=trainer)
    options = GenerationConfig(n_samples=1, max_new_tokens=load.new_tokens)
    requests = [
        GenerationRequest(tuple(prompt), options, (seed,))
        for seed, prompt in enumerate(_prompts(config, load).tolist())
    ]
    timing = time_calls(lambda: engine.generate(requests), context.device, measured=RUNS)
    trainer.close()
    found["local"] = load.prompts * load.new_tokens / timing.seconds
    return Outcome(_measured(load, timing), message=_described(load))


def transformers(context: Context, found: dict[str, float]) -> Outcome:
    """Its dynamic cache; the ratio is ours to theirs."""
    (config, _), load = shapes.dense(context.device), LOADS[context.device]
    free_memory(context.device)
    model = rival.build(config, context.device, compiled=False).eval()
    ids = _prompts(config, load).to(context.device)
    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": load.new_tokens, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    call = partial(model.generate, input_ids=ids, attention_mask=mask, eos_token_id=None, **arguments)
    timing = time_calls(call, context.device, measured=RUNS)
    measured = _measured(load, timing)
    if "local" in found:
        measured["archon_ratio"] = found["local"] / measured["tokens_per_s"]
    return Outcome(measured, goals={"archon_ratio": RATIO_GOAL} if context.on_gpu else {}, message=_described(load))


def _prompts(config: Mapping[str, Any], load: Load) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, config["vocab_size"], (load.prompts, load.prompt_length), generator=generator)


def _measured(load: Load, timing: Timing) -> dict[str, float]:
    return {
        "tokens_per_s": load.prompts * load.new_tokens / timing.seconds,
        "step_ms": 1000 * timing.seconds / load.new_tokens,
        "peak_gib": timing.peak_bytes / 2**30,
    }


def _described(load: Load) -> str:
    return f"{load.prompts} prompts of {load.prompt_length} tokens, {load.new_tokens} new ones each"
