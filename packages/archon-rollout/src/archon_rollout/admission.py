"""Admission of waiting samples to the batch.

Batching is continuous: samples join in request order while others decode. Free rows are filled several at a time, since
a prefill for one row costs about as much as a decode step for all rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from archon_core.contracts.rollout import GenerationConfig

PREFILL_TOKENS = 8192
"""Limit of prompt tokens per forward pass, to bound activation memory; a single longer prompt may exceed it."""

REFILL_SHARE = 8
"""A prefill interrupts running rows once one in this many rows is free."""


@dataclass(frozen=True)
class Sample:
    """One completion to generate.

    Attributes:
        request: index of its request.
        number: index among the request's samples.
        seed: of its random stream.
        prompt_length: tokens of the prompt.
        limit: largest number of completion tokens, at least 1.
        config: sampling options.
        decode: token ids -> text, to find ``config.stop``.
        streams: report every token when it is drawn.
        records_experts: record the routed experts of prompt and completion.
    """

    request: int
    number: int
    seed: int
    prompt_length: int
    limit: int
    config: GenerationConfig
    decode: Callable[[Sequence[int]], str] | None = None
    streams: bool = False
    records_experts: bool = False


@dataclass(frozen=True)
class PromptGroup:
    """Samples that start from the same prompt.

    Attributes:
        samples: at least one, all of the same request.
        complete: whether no sample of that request is waiting.
    """

    samples: tuple[Sample, ...]
    complete: bool

    @property
    def request(self) -> int:
        """Index of the request."""
        return self.samples[0].request


class AdmissionQueue:
    """Samples waiting for a free row, in order; samples of one request are adjacent."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._waiting = deque(samples)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, samples: Iterable[Sample]) -> None:
        """Append samples; those of one request are adjacent."""
        self._waiting.extend(samples)

    def remove(self, chosen: Callable[[Sample], bool]) -> list[Sample]:
        """Remove and return the ``chosen`` samples."""
        removed = [sample for sample in self._waiting if chosen(sample)]
        self._waiting = deque(sample for sample in self._waiting if not chosen(sample))
        return removed

    def take(self, n_rows: int, max_prompt_tokens: int = PREFILL_TOKENS) -> list[PromptGroup]:
        """Remove up to ``n_rows`` samples whose prompts together have at most ``max_prompt_tokens`` tokens.

        The first prompt is taken regardless of its length. A request whose samples do not all fit is split.
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
    """The number of samples to admit now."""
    n_free = max_rows - n_active
    worthwhile = min(n_waiting, -(-max_rows // REFILL_SHARE))
    return min(n_free, n_waiting) if n_active == 0 or n_free >= worthwhile else 0
