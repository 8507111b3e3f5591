"""Prefilled prompts, from which samples start; kept while other samples of the same request wait for a row."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from archon_rollout.admission import PromptGroup
from archon_rollout.kv_cache import KeptSequence

MAX_SPLIT_PROMPTS = 16
"""Prompts to keep. Each call may have one, and a prompt that was dropped is prefilled again at its call's next turn."""


@dataclass(frozen=True)
class Prompt:
    """A prefilled prompt, from which its samples start.

    Attributes:
        kept: its keys and values, and states, per layer.
        logits: [V], of its last token; V is the vocabulary.
        version: of the weights that computed them.
        experts: int16 [tokens, layers, experts per token], the routed experts; ``None`` if not recorded.
    """

    kept: KeptSequence
    logits: Tensor
    version: int
    experts: Tensor | None = None


class SplitPrompts:
    """Prompts of requests with some samples in rows and others in the queue."""

    def __init__(self) -> None:
        self._prompts: dict[int, Prompt] = {}

    def of(self, groups: Sequence[PromptGroup]) -> dict[int, Prompt]:
        """The kept prompts of ``groups``, by request."""
        return {group.request: self._prompts[group.request] for group in groups if group.request in self._prompts}

    def keep(self, groups: Sequence[PromptGroup], prompts: Mapping[int, Prompt]) -> None:
        """Keep the prompts of groups whose request has further samples; drop those of the others."""
        for group in groups:
            self._prompts.pop(group.request, None)
            if not group.complete:
                self._prompts[group.request] = prompts[group.request]
        while len(self._prompts) > MAX_SPLIT_PROMPTS:
            del self._prompts[next(iter(self._prompts))]

    def drop(self, requests: Container[int]) -> None:
        """Drop the prompts of ``requests``."""
        self._prompts = {request: prompt for request, prompt in self._prompts.items() if request not in requests}

    def clear(self) -> None:
        """Drop all prompts."""
        self._prompts = {}
