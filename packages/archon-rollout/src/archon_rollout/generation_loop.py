"""The generation loop: prefill the prompts that fit, decode one token for every row, collect finished completions.

Requests may join, and be aborted, between any two steps. The weights may change there, too: running rows then compute
their keys and values again, so that every token comes from one version of the weights alone, the one it is labelled
with.

Legend: V vocabulary, L layers, K experts per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.rollout import Completion
from archon_engine.models.staged import outline_of
from archon_engine.nn.attention import PackedAttention
from archon_rollout.admission import PREFILL_TOKENS, AdmissionQueue, PromptGroup, Sample, rows_to_fill
from archon_rollout.decode_rows import DecodeRows, Moves, NewToken
from archon_rollout.kv_cache import DecodeCache, KeptSequence, PromptCache
from archon_rollout.prefilled import Prompt, SplitPrompts
from archon_rollout.routed_experts import RoutingRecorder


@dataclass(frozen=True)
class Progress:
    """What one step of the loop produced.

    Attributes:
        finished: samples with their completions.
        tokens: new tokens of samples that stream, in the order of their sequences.
    """

    finished: list[tuple[Sample, Completion]] = field(default_factory=list)
    tokens: list[NewToken] = field(default_factory=list)


class GenerationLoop:
    """Generates samples on one module at a time.

    Args:
        module: returns ``logits``; in evaluation mode.
        device: of the module.
        max_rows: largest number of samples to decode at once.
        extra_rows: further rows, for short samples while the others are taken.
        version: called before every forward pass; returns the version of the weights.
    """

    def __init__(
        self,
        module: CausalModule,
        *,
        device: torch.device,
        max_rows: int,
        version: Callable[[], int],
        extra_rows: int = 0,
    ) -> None:
        self._use(module)
        self._device = device
        self._version = version
        self._max_rows, self._extra_rows = max_rows, extra_rows
        self._in_extra_rows: set[int] = set()
        self._queue = AdmissionQueue()
        # Token ids and number of unfinished samples, by request.
        self._prompts: dict[int, Sequence[int]] = {}
        self._unfinished: Counter[int] = Counter()
        # Rows and cache are allocated for the requests at hand, and freed when none is left.
        self._rows: DecodeRows | None = None
        self._cache: DecodeCache | None = None
        self._submitted: list[Sample] = []
        self._split_prompts = SplitPrompts()
        self._rows_are_stale = False
        self._progress = Progress()

    @property
    def n_running(self) -> int:
        """Number of samples in rows."""
        return 0 if self._rows is None else self._rows.n_active

    @property
    def n_waiting(self) -> int:
        """Number of samples that wait for a row."""
        return len(self._queue)

    def submit(self, request: int, prompt: Sequence[int], samples: Sequence[Sample]) -> None:
        """Add a request with its samples, at least one. Its number must differ from those of unfinished requests."""
        assert request not in self._prompts, f"request {request} is unfinished"
        self._prompts[request] = prompt
        self._unfinished[request] = len(samples)
        self._queue.add(samples)
        self._submitted += samples

    def _reserve(self) -> None:
        """Make room for the samples that were submitted since the last call, all at once."""
        samples, self._submitted = self._submitted, []
        n_rows = min(self._max_rows + self._extra_rows, self.n_running + len(self._queue))
        if not samples or n_rows == 0:
            return
        # The last token of a completion is never fed back, so it needs no cache entry.
        longest = max(s.prompt_length + s.limit - 1 for s in samples)
        if self._rows is None or self._cache is None:
            self._rows = DecodeRows(samples, max_rows=n_rows, device=self._device)
            self._cache = DecodeCache(max_rows=n_rows, max_places=longest)
        else:
            self._rows.reserve(samples, n_rows)
            self._cache.reserve(max_rows=n_rows, max_places=longest)

    def run(self) -> list[tuple[Sample, Completion]]:
        """Generate until no sample is left; return them with their completions, in the order of completion."""
        finished = []
        while self.n_running or self.n_waiting:
            finished += self.step().finished
        return finished

    # Not inference_mode: if a module caches a tensor computed in it, autograd could not save that tensor later.
    @torch.no_grad()
    def step(self, *, admits: bool = True) -> Progress:
        """Admit waiting samples if there is room, then decode one token for every row.

        Args:
            admits: false to leave waiting samples in the queue.
        """
        self._progress = Progress()
        if self._rows_are_stale:
            self._compute_rows_again()
        if admits:
            self._reserve()
            self._admit_waiting()
        if self.n_running:
            self._decode()
        self._free_when_idle()
        return self._progress

    def abort(self, requests: Container[int]) -> list[tuple[Sample, Completion]]:
        """Remove the samples of ``requests``; return them with what they have generated, which may be nothing."""

        def chosen(sample: Sample) -> bool:
            return sample.request in requests

        self._progress = Progress()
        empty = Completion((), (), (), "abort")
        self._finish([(sample, empty) for sample in self._queue.remove(chosen)])
        self._split_prompts.drop(requests)
        if self._rows is not None:
            self._after_removal(*self._rows.remove(chosen))
        self._free_when_idle()
        return self._progress.finished

    def change_weights(self, module: CausalModule) -> None:
        """Continue with ``module``. The next step computes the keys and values of all rows again."""
        self._use(module)
        self._split_prompts.clear()
        self._rows_are_stale = self.n_running > 0

    def _use(self, module: CausalModule) -> None:
        self._module = module
        self._backend = next((part.backend for part in module.modules() if isinstance(part, PackedAttention)), None)

    def _admit_waiting(self) -> None:
        n_active = self.n_running - len(self._in_extra_rows)
        n_rows = rows_to_fill(n_waiting=len(self._queue), n_active=n_active, max_rows=self._max_rows)
        while n_rows > 0:
            groups = self._queue.take(n_rows)
            n_rows -= sum(len(group.samples) for group in groups)
            self._admit(groups)
        while len(self._in_extra_rows) < self._extra_rows and (short := self._queue.take_short()) is not None:
            self._in_extra_rows.add(short.request)
            self._admit([short])
            if short.request not in self._in_extra_rows:
                break  # its only token came from the prefill; the running rows must not wait for a series of these

    def _admit(self, groups: Sequence[PromptGroup]) -> None:
        """Give every sample a row with its prompt, and sample its first token."""
        assert self._rows is not None
        assert self._cache is not None
        prompts = self._split_prompts.of(groups)
        prompts |= self._prefill([group for group in groups if group.request not in prompts])
        start = row = self._rows.n_active
        for group in groups:
            self._cache.write_rows(row, prompts[group.request].kept, copies=len(group.samples))
            row += len(group.samples)
        self._split_prompts.keep(groups, prompts)
        samples = [sample for group in groups for sample in group.samples]
        prompt_of_row = [prompts[sample.request] for sample in samples]
        self._rows.append(
            samples,
            [prompt.version for prompt in prompt_of_row],
            [p.experts if s.records_experts else None for s, p in zip(samples, prompt_of_row, strict=True)],
        )
        self._advance(torch.stack([prompt.logits for prompt in prompt_of_row]), start)

    def _prefill(self, groups: Sequence[PromptGroup]) -> dict[int, Prompt]:
        """One forward pass over the packed prompts of ``groups``."""
        if not groups:
            return {}
        requests = [group.request for group in groups]
        prompts = [self._prompt_ids(request) for request in requests]
        lengths = tuple(map(len, prompts))
        version = self._version()
        records = any(group.samples[0].records_experts for group in groups)
        logits, sequences, experts = self._process(torch.cat(prompts), lengths, records=records)
        experts_of = [None] * len(prompts) if experts is None else experts.split(lengths)
        parts = zip(requests, sequences, logits, experts_of, strict=True)
        return {request: Prompt(kept, row, version, chosen) for request, kept, row, chosen in parts}

    def _prompt_ids(self, request: int) -> Tensor:
        return torch.tensor(self._prompts[request], dtype=torch.int64, device=self._device)

    def _process(
        self, ids: Tensor, lengths: tuple[int, ...], *, records: bool
    ) -> tuple[Tensor, list[KeptSequence], Tensor | None]:
        """One forward pass over packed sequences: logits of their last tokens, what the layers keep, routed experts."""
        last_places = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        cache = PromptCache(self._backend)
        head = HeadInputs(outputs=("logits",), positions=last_places)
        packed = replace(PackedSequences.from_lengths(lengths, self._device, head), cache=cache)
        logits, experts = self._forward(ids, packed, records=records)
        return logits, cache.split(lengths), experts

    def _compute_rows_again(self) -> None:
        """Replace the keys and values of all rows by those of the current weights."""
        assert self._rows is not None
        assert self._cache is not None
        sequences = [
            torch.cat((self._prompt_ids(owner.sample.request), self._rows.generated_before_last(row)))
            for row, owner in enumerate(self._rows.owners)
        ]
        for rows in _chunks([len(sequence) for sequence in sequences]):
            chunk = [sequences[row] for row in rows]
            _, kept, _ = self._process(torch.cat(chunk), tuple(map(len, chunk)), records=False)
            for row, sequence in zip(rows, kept, strict=True):
                self._cache.write_rows(row, sequence, copies=1)
        self._rows_are_stale = False

    def _decode(self) -> None:
        """Decode one token for every row."""
        rows, cache = self._rows, self._cache
        assert rows is not None
        assert cache is not None
        n_rows, positions = rows.n_active, rows.positions
        packed = PackedSequences(
            cu_seqlens=torch.arange(n_rows + 1, dtype=torch.int32, device=self._device),
            max_seqlen=1,
            positions=positions,
            lengths=(1,) * n_rows,
            head=HeadInputs(outputs=("logits",)),
            cache=cache.begin_step(positions, rows.longest, is_even=rows.is_even),
        )
        rows.begin_step(self._version())
        logits, experts = self._forward(rows.last_tokens, packed, records=rows.records_experts)
        if experts is not None:
            rows.keep_experts(experts)
        self._advance(logits)

    def _forward(self, ids: Tensor, packed: PackedSequences, *, records: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, and the routed experts if they are recorded."""
        if not records:
            return self._module(ids, packed)["logits"], None
        recorder = RoutingRecorder(len(outline_of(self._module).layers))
        logits = self._module(ids, recorder.watch(packed))["logits"]
        return logits, recorder.taken()

    def _advance(self, logits: Tensor, start: int = 0) -> None:
        assert self._rows is not None
        self._after_removal(*self._rows.advance(logits, start, self._progress.tokens.append))

    def _after_removal(self, ended: Sequence[tuple[Sample, Completion]], moves: Moves) -> None:
        self._finish(ended)
        if moves.sources:
            assert self._rows is not None
            assert self._cache is not None
            sources, destinations = (
                torch.tensor(rows, device=self._device) for rows in (moves.sources, moves.destinations)
            )
            self._cache.move_rows(sources, destinations, self._rows.longest)

    def _finish(self, ended: Sequence[tuple[Sample, Completion]]) -> None:
        self._progress.finished.extend(ended)
        for sample, _ in ended:
            self._unfinished[sample.request] -= 1
            if self._unfinished[sample.request] == 0:
                del self._unfinished[sample.request], self._prompts[sample.request]
                self._in_extra_rows.discard(sample.request)

    def _free_when_idle(self) -> None:
        if not self.n_running and not self._queue:
            self._rows = self._cache = None
            self._rows_are_stale = False


def _chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive indices whose lengths add up to at most ``PREFILL_TOKENS``; a longer one is a chunk by itself."""
    chunk: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if chunk and total + length > PREFILL_TOKENS:
            yield chunk
            chunk, total = [], 0
        chunk.append(index)
        total += length
    if chunk:
        yield chunk
