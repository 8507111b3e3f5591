"""The generation loop: prefill the prompts that fit, decode one token for every row, collect finished completions.

Legend: V vocabulary, L layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.rollout import Completion
from archon_engine.nn.attention import PackedAttention
from archon_rollout.admission import AdmissionQueue, PromptGroup, Sample, rows_to_fill
from archon_rollout.decode_rows import DecodeRows
from archon_rollout.kv_cache import DecodeCache, KeysValues, PromptCache
from archon_rollout.routed_experts import RoutingRecorder


@dataclass(frozen=True)
class Prompt:
    """A prefilled prompt, from which its samples start.

    Attributes:
        keys_values: of its tokens, per layer.
        logits: [V], of its last token.
        version: of the weights that computed them.
        experts: int16 [tokens, L, K], the routed experts; ``None`` if not recorded.
    """

    keys_values: KeysValues
    logits: Tensor
    version: int
    experts: Tensor | None = None


class GenerationLoop:
    """Generates all of ``samples`` on one module.

    Args:
        module: returns ``logits``; in evaluation mode.
        prompts: token ids of every request.
        samples: at least one; samples of one request are adjacent.
        device: of the module.
        max_rows: largest number of samples to decode at once.
        version: called before every forward pass; returns the version of the weights.
        recorder: records routed experts; ``None`` for no recording.
    """

    def __init__(
        self,
        module: CausalModule,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[Sample],
        *,
        device: torch.device,
        max_rows: int,
        version: Callable[[], int],
        recorder: RoutingRecorder | None = None,
    ) -> None:
        self._module = module
        self._recorder = recorder
        self._prompts = prompts
        self._device = device
        self._backend = next((part.backend for part in module.modules() if isinstance(part, PackedAttention)), None)
        self._version = version
        self._max_rows = min(max_rows, len(samples))
        self._queue = AdmissionQueue(samples)
        self._rows = DecodeRows(samples, max_rows=self._max_rows, device=device)
        # The last token of a completion is never fed back, so it needs no cache entry.
        longest = max(s.prompt_length + s.limit - 1 for s in samples)
        self._cache = DecodeCache(max_rows=self._max_rows, max_places=longest)
        self._row_starts = torch.arange(self._max_rows + 1, dtype=torch.int32, device=device)
        # At most one request is split, with some samples in rows and others in the queue.
        self._split_prompts: dict[int, Prompt] = {}
        self._completions: list[tuple[Sample, Completion]] = []

    # Not inference_mode: if a module caches a tensor computed in it, autograd could not save that tensor later.
    @torch.no_grad()
    def run(self) -> list[tuple[Sample, Completion]]:
        """Generate; return every sample with its completion, in the order of completion."""
        while self._queue or self._rows.n_active:
            n_rows = rows_to_fill(n_waiting=len(self._queue), n_active=self._rows.n_active, max_rows=self._max_rows)
            while n_rows > 0:
                groups = self._queue.take(n_rows)
                n_rows -= sum(len(group.samples) for group in groups)
                self._admit(groups)
            if self._rows.n_active:
                self._decode()
        return self._completions

    def _admit(self, groups: Sequence[PromptGroup]) -> None:
        """Give every sample a row with its prompt, and sample its first token."""
        prompts = self._split_prompts | self._prefill(
            [g.request for g in groups if g.request not in self._split_prompts]
        )
        start = row = self._rows.n_active
        for group in groups:
            self._cache.append_rows(row, prompts[group.request].keys_values, copies=len(group.samples))
            row += len(group.samples)
        self._split_prompts = {g.request: prompts[g.request] for g in groups if not g.complete}
        samples = [sample for group in groups for sample in group.samples]
        prompt_of_row = [prompts[sample.request] for sample in samples]
        self._rows.append(
            samples, [prompt.version for prompt in prompt_of_row], [prompt.experts for prompt in prompt_of_row]
        )
        self._advance(torch.stack([prompt.logits for prompt in prompt_of_row]), start)

    def _prefill(self, requests: Sequence[int]) -> dict[int, Prompt]:
        """One forward pass over the packed prompts of ``requests``."""
        if not requests:
            return {}
        prompts = [self._prompts[request] for request in requests]
        lengths = tuple(len(prompt) for prompt in prompts)
        last_places = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        cache = PromptCache(self._backend)
        head = HeadInputs(outputs=("logits",), positions=last_places)
        packed = replace(PackedSequences.from_lengths(lengths, self._device, head), cache=cache)
        ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64, device=self._device)
        version = self._version()
        logits, experts = self._forward(ids, packed)
        experts_of = [None] * len(prompts) if experts is None else experts.split(lengths)
        parts = zip(requests, cache.split(lengths), logits, experts_of, strict=True)
        return {request: Prompt(keys_values, row, version, chosen) for request, keys_values, row, chosen in parts}

    def _decode(self) -> None:
        """Decode one token for every row."""
        rows = self._rows
        n_rows, positions = rows.n_active, rows.positions
        packed = PackedSequences(
            cu_seqlens=self._row_starts[: n_rows + 1],
            max_seqlen=1,
            positions=positions,
            lengths=(1,) * n_rows,
            head=HeadInputs(outputs=("logits",)),
            cache=self._cache.begin_step(positions, rows.longest),
        )
        rows.begin_step(self._version())
        logits, experts = self._forward(rows.last_tokens, packed)
        if experts is not None:
            rows.keep_experts(experts)
        self._advance(logits)

    def _forward(self, ids: Tensor, packed: PackedSequences) -> tuple[Tensor, Tensor | None]:
        """Logits, and the routed experts if they are recorded."""
        if self._recorder is None:
            return self._module(ids, packed)["logits"], None
        logits = self._module(ids, self._recorder.watch(packed))["logits"]
        return logits, self._recorder.taken()

    def _advance(self, logits: Tensor, start: int = 0) -> None:
        ended, moves = self._rows.advance(logits, start)
        self._completions += ended
        if moves.sources:
            sources, destinations = (
                torch.tensor(rows, device=self._device) for rows in (moves.sources, moves.destinations)
            )
            self._cache.move_rows(sources, destinations, self._rows.longest)
