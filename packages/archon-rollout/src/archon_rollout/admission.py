"""Admission of waiting samples to the batch.

Batching is continuous: samples join while others decode. Free rows are filled several at a time, since a prefill for
one row costs about as much as a decode step for all rows. The samples of a call leave in request order. Calls
take turns: they share the free rows equally, however many samples each of them has.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from archon_core.contracts.rollout import GenerationConfig

PREFILL_TOKENS = 8192
"""Limit of prompt tokens per forward pass, to bound activation memory; a single longer prompt may exceed it."""

REFILL_SHARE = 8
"""A prefill interrupts running rows once one in this many rows is free."""

SHORT_TOKENS = 64
"""A call of one sample is short if prompt and completion have at most this many tokens together."""


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
        call: number of the call that its request arrived with; calls take turns.
        is_short: it is all that its call asks for, and has few tokens, such as a probe. It may have an extra row.
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
    call: int = 0
    is_short: bool = False


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
    """Samples waiting for a free row, by call. Samples of one request are adjacent."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        # The first call has the next turn.
        self._calls: OrderedDict[int, deque[Sample]] = OrderedDict()
        self._short: OrderedDict[int, Sample] = OrderedDict()
        self._n_waiting = 0
        self.add(samples)

    def __len__(self) -> int:
        return self._n_waiting

    def add(self, samples: Iterable[Sample]) -> None:
        """Append samples to their calls; those of one request are adjacent."""
        for sample in samples:
            self._calls.setdefault(sample.call, deque()).append(sample)
            if sample.is_short:
                self._short[sample.call] = sample
            self._n_waiting += 1

    def remove(self, chosen: Callable[[Sample], bool]) -> list[Sample]:
        """Remove and return the ``chosen`` samples."""
        waiting = [sample for call in self._calls.values() for sample in call]
        self._calls, self._short, self._n_waiting = OrderedDict(), OrderedDict(), 0
        self.add(sample for sample in waiting if not chosen(sample))
        return [sample for sample in waiting if chosen(sample)]

    def take(self, n_rows: int, max_prompt_tokens: int = PREFILL_TOKENS) -> list[PromptGroup]:
        """Remove up to ``n_rows`` samples whose prompts together have at most ``max_prompt_tokens`` tokens.

        The first prompt is taken regardless of its length. A request whose samples do not all fit is split, or one
        whose call had its turn.
        """
        chosen: dict[int, list[Sample]] = {}
        tokens = 0
        share = max(1, n_rows // max(1, len(self._calls)))
        while self._calls and n_rows > 0:
            call, waiting = next(iter(self._calls.items()))
            for sample in list(itertools.islice(waiting, min(share, n_rows))):
                if sample.request not in chosen:
                    tokens += sample.prompt_length
                    if chosen and tokens > max_prompt_tokens:
                        return self._groups(chosen)
                chosen.setdefault(sample.request, []).append(self._pop(call))
                n_rows -= 1
            if call in self._calls:
                self._calls.move_to_end(call)
        return self._groups(chosen)

    def take_short(self) -> PromptGroup | None:
        """Remove the short sample that has waited longest; ``None`` if there is none."""
        if not self._short:
            return None
        return PromptGroup((self._pop(next(iter(self._short))),), complete=True)

    def _pop(self, call: int) -> Sample:
        """Remove the next sample of a call."""
        waiting = self._calls[call]
        sample = waiting.popleft()
        self._short.pop(call, None)
        self._n_waiting -= 1
        if not waiting:
            del self._calls[call]
        return sample

    def _groups(self, chosen: Mapping[int, list[Sample]]) -> list[PromptGroup]:
        groups = []
        for request, samples in chosen.items():
            waiting = self._calls.get(samples[0].call)
            groups.append(PromptGroup(tuple(samples), complete=not (waiting and waiting[0].request == request)))
        return groups


def rows_to_fill(*, n_waiting: int, n_active: int, max_rows: int) -> int:
    """The number of samples to admit now."""
    n_free = max_rows - n_active
    worthwhile = min(n_waiting, -(-max_rows // REFILL_SHARE))
    return min(n_free, n_waiting) if n_active == 0 or n_free >= worthwhile else 0
