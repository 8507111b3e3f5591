"""The rows of a decode batch: options, counters and outputs of each row as tensors, owners on the host.

Active rows form a prefix. New rows are appended; when rows finish, the last active rows move into the gaps, so that
every step works on one slice without finished rows. A token costs a fixed number of tensor operations and one transfer
of two flags; Python touches single rows only when they join or finish, except rows with stop texts.

Legend: R active rows, L layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from archon_core.contracts.rollout import Completion
from archon_core.errors import TrainingError
from archon_rollout.admission import Sample
from archon_rollout.random_streams import seed_tensor, uniforms
from archon_rollout.row_moves import Moves, plan_moves
from archon_rollout.sampling import SamplingOptions, penalise_frequency, sample
from archon_rollout.stop_texts import StopTextMatcher

StopReason = Literal["stop", "length", "abort"]

NO_STOP = -1
"""Padding of the table of stop ids; not a valid token id."""

KEPT_STEPS = 4096
"""Versions of decode steps to keep before those that no row needs any more are dropped."""


@dataclass(frozen=True)
class RowOwner:
    """The sample of a row.

    Attributes:
        sample: the completion to generate.
        first_step: number of decode steps before its first token, which comes from the prefill; each later token takes
            one step.
        first_version: version of the weights of the prefill.
        prompt_experts: int16 [prompt tokens, L, K], routed experts of the prompt; ``None`` if not recorded.
        stop_texts: finds the sample's stop texts; ``None`` without any.
    """

    sample: Sample
    first_step: int
    first_version: int
    prompt_experts: Tensor | None = None
    stop_texts: StopTextMatcher | None = None


@dataclass(frozen=True)
class NewToken:
    """A token of a sample that streams its tokens."""

    sample: Sample
    token_id: int
    logprob: float


class DecodeRows:
    """State of up to ``max_rows`` rows on ``device``, wide enough for any of ``samples``; ``reserve`` makes room for
    more."""

    def __init__(self, samples: Sequence[Sample], *, max_rows: int, device: torch.device) -> None:
        self._any_tempered = self._any_filtered = self._any_greedy = self._any_streamed = False
        self._any_penalised = self._any_stop_texts = False
        longest, stops = _widths(samples)

        def column(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros(max_rows, *width, dtype=dtype, device=device)

        self._longest = longest
        self._token_ids = column(torch.int64, longest)
        self._logprobs = column(torch.float64, longest)
        self._last_token = column(torch.int64)
        self._n_generated = column(torch.int64)
        self._prompt_length = column(torch.int64)
        self._limit = column(torch.int64)
        self._minimum = column(torch.int64)
        self._seed = column(torch.int64)
        self._temperature = column(torch.float64)
        self._top_p = column(torch.float64)
        self._top_k = column(torch.int64)
        self._penalty = column(torch.float64)
        self._greedy = column(torch.bool)
        self._stop_ids = column(torch.int64, stops)
        self._experts: Tensor | None = None
        self._row_numbers = torch.arange(max_rows, device=device)

        self._owners: list[RowOwner] = []
        self._step = 0
        # Versions of the latest decode steps; ``_first_kept`` is the number of the first of them.
        self._step_versions: list[int] = []
        self._first_kept = 0
        self._reach = 0
        self._is_even = False
        self._stop_banned_until = 0

    def reserve(self, samples: Sequence[Sample], max_rows: int) -> None:
        """Make room for ``max_rows`` rows of any of ``samples``, beside the active rows."""
        n_rows = max(max_rows, self._row_numbers.shape[0])
        longest, stops = (
            max(pair) for pair in zip(_widths(samples), (self._longest, self._stop_ids.shape[1]), strict=True)
        )
        if (n_rows, longest, stops) == (self._row_numbers.shape[0], self._longest, self._stop_ids.shape[1]):
            return
        widths = {"_token_ids": longest, "_logprobs": longest, "_stop_ids": stops, "_experts": longest - 1}
        for name, column in self._columns.items():
            shape = [n_rows, *column.shape[1:]]
            if name in widths:
                shape[1] = widths[name]
            resized = column.new_full(shape, NO_STOP if name == "_stop_ids" else 0)
            resized[tuple(slice(0, size) for size in column.shape)] = column
            setattr(self, name, resized)
        self._longest = longest
        self._row_numbers = torch.arange(n_rows, device=self._row_numbers.device)

    @property
    def _columns(self) -> dict[str, Tensor]:
        """The tensors with one entry per row, by attribute."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "_row_numbers"
        }

    @property
    def n_active(self) -> int:
        """Number of active rows."""
        return len(self._owners)

    @property
    def last_tokens(self) -> Tensor:
        """The newest token of every active row, int64 [R]: the input of the next decode step."""
        return self._last_token[: self.n_active]

    @property
    def positions(self) -> Tensor:
        """The positions of ``last_tokens`` in their sequences, int64 [R]."""
        rows = slice(0, self.n_active)
        return self._prompt_length[rows] + self._n_generated[rows] - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest active row, including the newest one."""
        return self._reach + self._step + 1

    @property
    def is_even(self) -> bool:
        """Whether all active rows have the same number of tokens."""
        return self._is_even

    @property
    def owners(self) -> Sequence[RowOwner]:
        """The owners of the active rows."""
        return self._owners

    @property
    def records_experts(self) -> bool:
        """Whether the experts of some row are recorded."""
        return any(owner.prompt_experts is not None for owner in self._owners)

    def generated_before_last(self, row: int) -> Tensor:
        """The completion tokens of a row without the newest, which no forward pass has processed: int64 [n]."""
        return self._token_ids[row, : self._step - self._owners[row].first_step]

    def begin_step(self, version: int) -> None:
        """Start a decode step with weights of ``version``."""
        if len(self._step_versions) >= KEPT_STEPS:
            needed = min((owner.first_step for owner in self._owners), default=self._step)
            del self._step_versions[: needed - self._first_kept]
            self._first_kept = needed
        self._step_versions.append(version)
        self._step += 1

    def keep_experts(self, experts: Tensor) -> None:
        """Store the routed experts of the newest tokens, int16 [R, L, K]. Call before ``advance``."""
        if self._experts is None:
            # The last token of a completion is never fed back.
            self._experts = experts.new_zeros(self._row_numbers.shape[0], self._longest - 1, *experts.shape[1:])
        rows = slice(0, self.n_active)
        self._experts[self._row_numbers[rows], self._n_generated[rows] - 1] = experts

    def append(
        self, samples: Sequence[Sample], versions: Sequence[int], experts: Sequence[Tensor | None] | None = None
    ) -> None:
        """Add rows without completion tokens.

        Args:
            samples: the sample of each row.
            versions: versions of the weights that prefilled the prompts.
            experts: routed experts of each prompt, int16 [prompt tokens, L, K].
        """
        rows = slice(self.n_active, self.n_active + len(samples))
        configs = [s.config for s in samples]
        width = self._stop_ids.shape[1]
        stops = [[*c.stop_token_ids, *[NO_STOP] * (width - len(c.stop_token_ids))] for c in configs]
        self._seed[rows] = seed_tensor((s.seed for s in samples), self._seed.device)
        for column, values in (
            (self._n_generated, [0] * len(samples)),
            (self._prompt_length, [s.prompt_length for s in samples]),
            (self._limit, [s.limit for s in samples]),
            (self._minimum, [c.min_new_tokens for c in configs]),
            (self._temperature, [1.0 if c.greedy else c.temperature for c in configs]),
            (self._top_p, [1.0 if c.greedy else c.top_p for c in configs]),
            (self._top_k, [0 if c.greedy else c.top_k for c in configs]),
            (self._penalty, [c.frequency_penalty for c in configs]),
            (self._greedy, [c.greedy for c in configs]),
            (self._stop_ids, stops),
        ):
            column[rows] = torch.tensor(values, dtype=column.dtype, device=column.device).view(column[rows].shape)
        chosen = experts or [None] * len(samples)
        self._owners += [
            RowOwner(s, self._step, v, e, _matcher(s)) for s, v, e in zip(samples, versions, chosen, strict=True)
        ]
        self._stop_banned_until = max(self._stop_banned_until, *(self._step + c.min_new_tokens for c in configs))
        self._update_reach()
        active = [owner.sample for owner in self._owners]
        self._any_tempered = any(s.config.temperature != 1.0 and not s.config.greedy for s in active)
        self._any_filtered = any((s.config.top_p < 1 or s.config.top_k > 0) and not s.config.greedy for s in active)
        self._any_greedy = any(s.config.greedy for s in active)
        self._any_streamed = any(s.streams for s in active)
        self._any_penalised = any(s.config.frequency_penalty for s in active)
        self._any_stop_texts = any(s.config.stop for s in active)

    def advance(
        self, logits: Tensor, start: int = 0, on_token: Callable[[NewToken], None] | None = None
    ) -> tuple[list[tuple[Sample, Completion]], Moves]:
        """Sample the next token of the active rows from ``start`` on, and remove finished rows.

        Args:
            logits: [R - start, V].
            on_token: receives the tokens of samples that stream.

        Returns:
            The finished completions, and the moves that the caller must apply to its own per-row state.

        Raises:
            TrainingError: the logits are not finite.
        """
        rows = slice(start, self.n_active)
        places = self._n_generated[rows].clone()
        drawn = uniforms(self._seed[rows], places)
        if self._any_penalised:
            logits = self._penalised(logits, start)
        tokens, logprobs = sample(logits, drawn, self._options(rows), self._banned(rows, logits.shape[1]))
        self._token_ids[self._row_numbers[rows], places] = tokens
        self._logprobs[self._row_numbers[rows], places] = logprobs.double()
        self._last_token[rows] = tokens
        self._n_generated[rows] += 1
        stopped = (tokens[:, None] == self._stop_ids[rows]).any(-1)
        if self._any_stop_texts:
            stopped |= self._complete_stop_texts(tokens, start)
        ended = stopped | (self._n_generated[rows] >= self._limit[rows])
        any_ended, all_finite = torch.stack((ended.any(), logprobs.isfinite().all())).tolist()
        if not all_finite:
            raise TrainingError(
                "generation: found NaN or infinity in the model's logits; check the weights, and the learning rate if "
                "they come from training"
            )
        if self._any_streamed and on_token is not None:
            for owner, token, logprob in zip(self._owners[start:], tokens.tolist(), logprobs.tolist(), strict=True):
                if owner.sample.streams:
                    on_token(NewToken(owner.sample, token, logprob))
        if not any_ended:
            return [], Moves((), (), self.n_active)
        reasons: list[StopReason] = ["stop" if by_token else "length" for by_token in stopped.tolist()]
        return self._remove([False] * start + ended.tolist(), ["length"] * start + reasons)

    def remove(self, chosen: Callable[[Sample], bool]) -> tuple[list[tuple[Sample, Completion]], Moves]:
        """Remove the rows of ``chosen`` samples, with what they have generated so far.

        Returns:
            Their completions, and moves as ``advance`` does.
        """
        removed = [chosen(owner.sample) for owner in self._owners]
        return self._remove(removed, ["abort"] * len(removed))

    def _remove(
        self, ended: Sequence[bool], reasons: Sequence[StopReason]
    ) -> tuple[list[tuple[Sample, Completion]], Moves]:
        finished = [self._output(row, reasons[row]) for row in compress(range(len(ended)), ended)]
        moves = plan_moves(ended)
        self._apply_moves(moves)
        return finished, moves

    def _penalised(self, logits: Tensor, start: int) -> Tensor:
        """``logits`` of the rows from ``start`` on, after their frequency penalties."""
        rows = slice(start, self.n_active)
        longest = max(self._step - owner.first_step for owner in self._owners[start:])
        generated = self._token_ids[rows, :longest]
        return penalise_frequency(logits, generated, self._n_generated[rows], self._penalty[rows])

    def _complete_stop_texts(self, tokens: Tensor, start: int) -> Tensor:
        """Whether the newest tokens complete a stop text of their rows, from ``start`` on: bool [R - start]."""
        matchers = [owner.stop_texts for owner in self._owners[start:]]
        found = [
            matcher is not None and matcher.add(token) is not None
            for matcher, token in zip(matchers, tokens.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.bool, device=tokens.device)

    def _options(self, rows: slice) -> SamplingOptions:
        return SamplingOptions(
            temperature=self._temperature[rows],
            top_p=self._top_p[rows],
            top_k=self._top_k[rows],
            greedy=self._greedy[rows],
            any_tempered=self._any_tempered,
            any_filtered=self._any_filtered,
            any_greedy=self._any_greedy,
        )

    def _banned(self, rows: slice, vocabulary: int) -> Tensor | None:
        """Stop tokens of rows below their minimum: bool [rows, vocabulary]; ``None`` when there can be none."""
        if self._step >= self._stop_banned_until:
            return None
        ids = torch.arange(vocabulary, device=self._stop_ids.device)
        is_stop = (ids[None, :, None] == self._stop_ids[rows][:, None, :]).any(-1)
        return is_stop & (self._n_generated[rows] < self._minimum[rows])[:, None]

    def _output(self, row: int, reason: StopReason) -> tuple[Sample, Completion]:
        owner = self._owners[row]
        n_tokens = 1 + self._step - owner.first_step
        completion = Completion(
            token_ids=tuple(self._token_ids[row, :n_tokens].tolist()),
            logprobs=tuple(self._logprobs[row, :n_tokens].tolist()),
            versions=(owner.first_version, *self._step_versions[owner.first_step - self._first_kept :]),
            stop_reason=reason,
            routed_experts=self._experts_of(row, owner, n_tokens),
        )
        return owner.sample, completion

    def _experts_of(self, row: int, owner: RowOwner, n_tokens: int) -> Tensor | None:
        if owner.prompt_experts is None:
            return None
        parts = [owner.prompt_experts]
        if self._experts is not None:
            parts.append(self._experts[row, : n_tokens - 1])
        return torch.cat(parts).cpu()

    def _apply_moves(self, moves: Moves) -> None:
        if moves.sources:
            sources = torch.tensor(moves.sources, device=self._row_numbers.device)
            destinations = torch.tensor(moves.destinations, device=self._row_numbers.device)
            for column in self._columns.values():
                column[destinations] = column[sources]
            for source, destination in zip(moves.sources, moves.destinations, strict=True):
                self._owners[destination] = self._owners[source]
        del self._owners[moves.n_left :]
        self._update_reach()

    def _update_reach(self) -> None:
        # All rows grow by one token per step, so the longest row changes only when rows join or finish.
        reaches = {owner.sample.prompt_length - owner.first_step for owner in self._owners}
        self._reach = max(reaches, default=0)
        self._is_even = len(reaches) == 1


def _widths(samples: Sequence[Sample]) -> tuple[int, int]:
    """The longest completion, and the largest number of stop tokens."""
    return max(s.limit for s in samples), max(len(s.config.stop_token_ids) for s in samples)


def _matcher(sample: Sample) -> StopTextMatcher | None:
    if not sample.config.stop:
        return None
    assert sample.decode is not None, "check_requests refuses stop texts without a decode function"
    return StopTextMatcher(sample.config.stop, sample.decode, sample.config.min_new_tokens)
