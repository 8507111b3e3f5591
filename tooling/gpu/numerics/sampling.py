"""Greedy completions by the local engine, on an engine that trains."""

from __future__ import annotations

from typing import Any

import torch

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.plugins import InferenceEngineSpec, registry
from gpu.numerics.models import SIZES
from gpu.records import Context

PROMPT_LENGTHS = (3, 17, 1, 40, 9, 24)
NEW_TOKENS = 12


def prompts_of(context: Context) -> list[tuple[int, ...]]:
    """Token ids of ragged prompts."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = SIZES[context.device]["vocab_size"]
    return [tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in PROMPT_LENGTHS]


def generate(engine: Any, context: Context, *, with_experts: bool = False) -> list[Completion]:
    """One completion per prompt.

    Args:
        with_experts: completions tell which experts their tokens went to.
    """
    rollout = RolloutConfig(return_routed_experts=with_experts)
    local = registry().get(InferenceEngineSpec, "local").load()(rollout, trainer=engine)
    config = GenerationConfig(n_samples=1, max_new_tokens=NEW_TOKENS, greedy=True)
    requests = [GenerationRequest(prompt, config, (0,)) for prompt in prompts_of(context)]
    return [completion for [completion] in local.generate(requests)]
