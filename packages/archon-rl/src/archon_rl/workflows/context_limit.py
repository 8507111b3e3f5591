"""``ContextLimit``: the longest sequence that the models of a run can take, applied to the requests of workflows.

The prompts of a run are measured before its first step, but conversations grow while a workflow runs. A request that
could become too long for training is shortened, and one without room for a token is refused, so that it concerns its
workflow alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from archon_core.contracts.rollout import GenerationRequest
from archon_core.errors import TooLongRequestError


@dataclass(frozen=True)
class ContextLimit:
    """The longest sequence of a run.

    Attributes:
        longest: in tokens; ``None`` for no limit.
        reason: what sets the limit, for messages.
    """

    longest: int | None = None
    reason: str = ""

    def applied(self, request: GenerationRequest) -> GenerationRequest:
        """The request, with a limit on its completion if it could become too long.

        Raises:
            TooLongRequestError: the prompt is too long.
        """
        prompt, config = request.prompt_ids, request.config
        limits = [limit for limit in (config.max_tokens, self.longest) if limit is not None]
        if not limits:
            return request
        longest = min(limits)
        if len(prompt) > longest:
            reason = self.reason if longest == self.longest else f"gconfig.max_tokens={config.max_tokens}"
            raise TooLongRequestError(
                f"prompt of a request: found {len(prompt)} tokens; allowed are {longest}: {reason}; shorten it"
            )
        if len(prompt) + config.max_new_tokens <= longest:
            return request
        return replace(request, config=replace(config, max_tokens=longest))


UNLIMITED = ContextLimit()
