"""Which samples wait, and when they join the batch.

Admission is continuous: samples join while others are being decoded, in the order of the requests. Rows that become
free are filled a few at a time, because a prefill for a single row costs about as much as a decode step for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from archon_core.contracts.rollout import GenerationConfig

PREFILL_TOKENS = 8192
"""Most prompt tokens in one forward pass, but for a single longer prompt: bounds the memory of its activations."""

REFILL_SHARE = 8
"""One in this many rows must be free before running rows wait for a prefill."""


@dataclass(frozen=True)
class Sample:
    """One completion to make.

    Attributes:
        request: index of its request.
        number: which of the request's samples it is.
        seed: of its random stream.
        prompt_length: tokens in the prompt.
        limit: most tokens that it may have, at least 1.
        config: sampling options.
    """

    request: int
    number: int
    seed: int
    prompt_length: int
    limit: int
    config: GenerationConfig


@dataclass(frozen=True)
class PromptGroup:
    """Samples that start from the same prompt.

    Attributes:
        samples: at least one, all of the same request.
        complete: no sample of that request waits any longer.
    """

    samples: tuple[Sample, ...]
    complete: bool

    @property
    def request(self) -> int:
        """Index of the request."""
        return self.samples[0].request


class AdmissionQueue:
    """Samples that wait for a free row, in order; those of one request stand together."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._waiting = deque(samples)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, n_rows: int, max_prompt_tokens: int = PREFILL_TOKENS) -> list[PromptGroup]:
        """Remove up to ``n_rows`` samples whose prompts together have at most ``max_prompt_tokens`` tokens.

        The first prompt is taken whatever its length. A request whose samples do not all fit is split.
        """
        groups: list[PromptGroup] = []
        tokens = 0
        while self._waiting and n_rows > 0:
            first = self._waiting[0]
            tokens += first.prompt_length
            if groups and tokens > max_prompt_tokens:
                break
            members: list[Sample] = []
            while self._waiting and len(members) < n_rows and self._waiting[0].request == first.request:
                members.append(self._waiting.popleft())
            n_rows -= len(members)
            complete = not (self._waiting and self._waiting[0].request == first.request)
            groups.append(PromptGroup(tuple(members), complete))
        return groups


def rows_to_fill(*, n_waiting: int, n_active: int, max_rows: int) -> int:
    """How many samples should join now."""
    n_free = max_rows - n_active
    worthwhile = min(n_waiting, -(-max_rows // REFILL_SHARE))
    return min(n_free, n_waiting) if n_active == 0 or n_free >= worthwhile else 0
