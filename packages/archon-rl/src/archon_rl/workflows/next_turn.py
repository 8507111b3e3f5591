"""``next_turn``: one more answer in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory
from archon_core.errors import RefusedRequestError
from archon_core.seeding import derive_seed


async def next_turn(
    client: RolloutClient,
    conversation: Trajectory,
    asked: Sequence[int],
    options: GenerationConfig,
    *,
    seed: int,
    turn: int,
) -> tuple[Trajectory, Completion | None]:
    """Sample the answer of a turn.

    Args:
        client: completes prompts.
        conversation: the turns so far.
        asked: token ids to append to it before the answer.
        options: of sampling; one sample is drawn.
        seed: of the sample.
        turn: number of turns so far. Every turn has another seed: with the same random numbers, a sample would tend to
            repeat its answer.

    Returns:
        The conversation with the answer, and the answer. If the conversation is too long for one: the conversation,
        truncated, and ``None``.
    """
    prompt = (*conversation.token_ids, *asked)
    seeds = (derive_seed(seed, "turn", turn),)
    try:
        [answer] = await client.generate(GenerationRequest(prompt, replace(options, n_samples=1), seeds))
    except RefusedRequestError:
        return replace(conversation, truncated=True), None
    if not answer.token_ids:
        return replace(conversation, truncated=True), None
    return conversation.extended(prompt, answer), answer
