"""``WorkflowParts`` of a run."""

from __future__ import annotations

from archon_core.contracts.rollout import GenerationConfig
from archon_core.contracts.workflows import WorkflowParts
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.rewards import AsyncScorer, FunctionRewards


def workflow_parts(encoder: TextEncoder, options: GenerationConfig, scorer: AsyncScorer | None) -> WorkflowParts:
    """The parts that a workflow is built from.

    Args:
        encoder: of the run's prompts.
        options: sampling options, with all stop tokens.
        scorer: calls the reward function; ``None`` for a run without rewards.
    """
    return WorkflowParts(
        tokenizer=encoder.tokenizer,
        encode_prompt=encoder.encode_prompt,
        encode_messages=encoder.encode_messages,
        options=options,
        rewards=None if scorer is None else FunctionRewards(encoder, scorer),
    )
