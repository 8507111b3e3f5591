"""``rlvr``: complete a record's prompt once per seed, and score the completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory, WorkflowParts


def rlvr(config: Any, parts: WorkflowParts) -> RLVR:
    """Build the workflow; a ``WorkflowFactory``."""
    return RLVR(parts)


@dataclass(frozen=True)
class RLVR:
    """Reinforcement learning from verifiable rewards: one answer per sample.

    Attributes:
        parts: of the run.
    """

    parts: WorkflowParts

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``Workflow``."""
        prompt = self.parts.encode_prompt(record)
        completions = await client.generate(GenerationRequest(prompt, self.parts.options, tuple(seeds)))
        trajectories = [Trajectory.from_completion(prompt, one) for one in completions]
        if self.parts.rewards is None:
            return trajectories
        rewards = await self.parts.rewards(record, [one.token_ids for one in completions])
        return [replace(one, reward=reward) for one, reward in zip(trajectories, rewards, strict=True)]
