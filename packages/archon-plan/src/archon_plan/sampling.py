"""Times in which servers sample the batches of a run.

A server decodes one token of every running sequence per step, so in units of steps a completion takes its length,
however many others run. The start and end of every completion in these units follow from list scheduling; the seconds
of a step follow from the sequences that run during it. A synchronous batch begins and ends with empty servers. Ahead of
training, servers keep running the number of sequences that ``max_concurrent_rollouts`` and the KV cache allow.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from archon_core.errors import ConfigError
from archon_plan.lengths import Lengths
from archon_plan.overlap import BatchTimes
from archon_plan.server import Rates, Server

N_BATCHES = 160
"""Batches whose longest completions are drawn; the mean time of a step then varies by less than a percent."""

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Samples:
    """What a step samples.

    Attributes:
        prompts: prompts of a step (``data.batch_size``).
        n_samples: completions of each prompt.
        prompt_tokens: mean length of a prompt.
        lengths: of completions.
    """

    prompts: int
    n_samples: int
    prompt_tokens: float
    lengths: Lengths

    @property
    def sequences(self) -> int:
        """Completions of a step."""
        return self.prompts * self.n_samples

    @property
    def tokens(self) -> float:
        """Tokens that a step trains on: of each completion, with its prompt."""
        return self.sequences * (self.prompt_tokens + self.lengths.mean)

    @property
    def context(self) -> float:
        """Mean tokens of a running sequence: its prompt, and half of a completion that is chosen in proportion to its
        length, E[L^2] / (2 E[L])."""
        return self.prompt_tokens + self.lengths.squares / (2 * self.lengths.mean)


@dataclass(frozen=True)
class Fleet:
    """Equal servers with the samples of a run.

    Attributes:
        server: one of them.
        rates: of a device.
        count: number of servers.
        samples: of a step.
        concurrent: prompts that all servers sample at a time (``rollout.max_concurrent_rollouts``); ``None`` for
            ``samples.prompts``.
        refills: whether running sequences are prefilled again after every publication, as with new weights they are.
    """

    server: Server
    rates: Rates
    count: int
    samples: Samples
    concurrent: int | None = None
    refills: bool = True

    @cached_property
    def places(self) -> int:
        """Sequences that one server decodes together.

        Raises:
            ConfigError: the memory of a device does not hold the weights and one sequence.
        """
        context = self.samples.context
        fitting = self.server.most_sequences(self.rates, context)
        if fitting < 1:
            needed = self.server.weights + self.server.cached(context, 1)
            found = self.server.capacity(self.rates) + self.server.weights
            devices = f"{self.server.n_devices} device{'s' if self.server.n_devices > 1 else ''}"
            raise ConfigError(
                f"servers of {devices}: found {found / 2**30:.1f} GiB on each for weights and KV cache; the weights "
                f"and one sequence of {context:,.0f} tokens need {needed / 2**30:.1f} GiB; raise t in rollout.backend, "
                "or use devices with more memory"
            )
        return fitting

    @cached_property
    def running(self) -> float:
        """Sequences that a server decodes together while it samples ahead of training.

        Groups count as concurrent until their longest completion ends, so on average fewer sequences run than
        ``concurrent`` x ``n_samples``.
        """
        lengths, n_samples = self.samples.lengths, self.samples.n_samples
        groups = self.concurrent or self.samples.prompts
        longest = sum(lengths.longest(n_samples, (place + 0.5) / 64) for place in range(64)) / 64
        allowed = groups * n_samples * lengths.mean / max(longest, lengths.mean) / self.count
        return max(1.0, min(float(self.places), allowed))

    @cached_property
    def step_seconds(self) -> float:
        """Time of a decode step while the servers sample ahead of training."""
        return self.server.decode_seconds(self.rates, self.running, self.running * self.samples.context)

    @cached_property
    def prefill_seconds(self) -> float:
        """Time to prefill the prompts of a step, each of which its completions share."""
        return self.server.prefill_seconds(self.rates, self.samples.prompts / self.count, self.samples.prompt_tokens)

    @cached_property
    def refill_seconds(self) -> float:
        """Time to compute the KV cache of the running sequences again, after a publication."""
        if not self.refills:
            return 0.0
        return self.server.prefill_seconds(self.rates, self.running, self.samples.context)

    @cached_property
    def tokens_per_second(self) -> float:
        """Completion tokens of all servers while they sample ahead of training."""
        return self.samples.sequences * self.samples.lengths.mean / self.work

    @cached_property
    def work(self) -> float:
        """Seconds in which the servers sample a batch while they never wait."""
        tokens = self.samples.sequences * self.samples.lengths.mean / self.count
        return tokens / self.running * self.step_seconds + self.prefill_seconds + self.refill_seconds

    @cached_property
    def batch_seconds(self) -> float:
        """Seconds in which the servers sample a batch that training waits for: from empty servers to empty servers.

        The server with the longest completion ends last.
        """
        return self.prefill_seconds + schedule(
            self._drawn, self.places, lambda n, tokens: self.server.decode_seconds(self.rates, n, tokens), self._prompt
        )

    def batches(self, staleness: int) -> list[BatchTimes]:
        """The sampling of successive batches, which differ in their longest completion."""
        median = self.samples.lengths.longest(self.samples.sequences)
        if staleness == 0:
            work, latency = self.batch_seconds, self.batch_seconds
            step = self.server.decode_seconds(self.rates, 1, self._prompt + median)
        else:
            work, step = self.work, self.step_seconds
            slots = max(1, round(self.running))
            latency = max(work, step * ends(self._drawn, slots) + self.prefill_seconds)
        shift = [self.samples.lengths.longest(self.samples.sequences, share) - median for share in _shares(N_BATCHES)]
        if staleness == 0:
            return [BatchTimes(work + step * more, latency + step * more) for more in shift]
        return [BatchTimes(work, max(work, latency + step * more)) for more in shift]

    @property
    def _prompt(self) -> float:
        return self.samples.prompt_tokens

    @cached_property
    def _drawn(self) -> list[float]:
        """Completions of the server that gets the longest of the batch."""
        number = math.ceil(self.samples.sequences / self.count)
        drawn = self.samples.lengths.draw(number, seed=1)
        longest = max(range(number), key=drawn.__getitem__)
        drawn[longest] = self.samples.lengths.longest(self.samples.sequences)
        return drawn


def _shares(number: int) -> list[float]:
    """Evenly spread numbers between 0 and 1 in an irregular order (multiples of the golden ratio)."""
    return [((place + 0.5) * _GOLDEN) % 1.0 for place in range(number)]


def ends(lengths: Sequence[float], places: int) -> float:
    """When the last sequence ends if each starts as soon as a place is free."""
    free = [0.0] * min(places, len(lengths))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def schedule(lengths: Sequence[float], places: int, seconds: Callable[[float, float], float], prompt: float) -> float:
    """Seconds until all sequences have ended if each starts as soon as a place is free.

    Args:
        lengths: decode steps of each sequence, in the order of their starts.
        places: sequences that run together.
        seconds: time of a decode step, from the number of running sequences and the tokens in their KV cache.
        prompt: tokens of each sequence before its first step.
    """
    waiting = iter(lengths)
    running = [(length, 0.0) for length in islice(waiting, places)]  # ends and starts, in steps
    heapq.heapify(running)
    total = now = starts = 0.0
    while running:
        end = running[0][0]
        if end > now:
            number = len(running)
            tokens = number * (prompt + (now + end) / 2) - starts
            total += (end - now) * seconds(number, tokens)
            now = end
        starts -= heapq.heappop(running)[1]
        if (length := next(waiting, None)) is not None:
            heapq.heappush(running, (now + length, now))
            starts += now
    return total
