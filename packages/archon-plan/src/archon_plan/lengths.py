"""Lengths of completions: log-normal, with a limit that ends the longest ones.

Most completions are short and a few are several times as long; a batch that waits for all of them waits for the
longest. The shape is an assumption; ``archon simulate`` makes the same one for the times of groups.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from archon_core.errors import ConfigError
from archon_core.seeding import derive_seed

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens of completions.

    Attributes:
        mean: as measured, the completions at the limit included.
        spread: standard deviation over the mean, without the limit.
        limit: the largest length (``gconfig.max_new_tokens``).

    Raises:
        ConfigError: the mean is not above 0, or above the limit.
    """

    mean: float
    spread: float
    limit: int

    def __post_init__(self) -> None:
        if not 0 < self.mean <= self.limit or not self.spread >= 0:
            raise ConfigError(
                f"lengths of completions: found a mean of {self.mean:g} tokens and a spread of {self.spread:g} with "
                f"max_new_tokens={self.limit}; allowed are means above 0 up to max_new_tokens, and spreads from 0; "
                "the mean of a run is completion_tokens in its metrics.jsonl"
            )

    @property
    def _sigma(self) -> float:
        return math.sqrt(math.log1p(self.spread**2))

    @cached_property
    def _mu(self) -> float:
        """Mean of the logarithm, so that the mean with the limit is ``mean``."""
        if self.spread == 0:
            return math.log(self.mean)
        low, high = math.log(self.mean) - self._sigma**2 / 2, math.log(self.limit) + 20 * self._sigma
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._limited_mean(middle) < self.mean else (low, middle)
        return (low + high) / 2

    def _limited_mean(self, mu: float) -> float:
        """E[min(X, limit)] of a log-normal X: the partial expectation below the limit, and the limit beyond it."""
        sigma, bound = self._sigma, math.log(self.limit)
        below = math.exp(mu + sigma**2 / 2) * _NORMAL.cdf((bound - mu - sigma**2) / sigma)
        return below + self.limit * (1 - _NORMAL.cdf((bound - mu) / sigma))

    def quantile(self, share: float) -> float:
        """The length that a share of the completions does not exceed; ``share`` is between 0 and 1."""
        if self.spread == 0:
            return self.mean
        return min(float(self.limit), math.exp(self._mu + self._sigma * _NORMAL.inv_cdf(share)))

    def longest(self, number: int, share: float = 0.5) -> float:
        """A quantile of the longest of ``number`` completions: that of one completion at ``share`` ^ (1 / number)."""
        return self.quantile(min(share ** (1 / number), 1 - 1e-15))

    @cached_property
    def squares(self) -> float:
        """The mean of the squared lengths, over 4,096 quantiles."""
        return sum(length * length for length in self._quantiles(4096)) / 4096

    def draw(self, number: int, seed: int) -> list[float]:
        """``number`` lengths with the mean of all: equally likely quantiles, in a random order."""
        drawn = self._quantiles(number)
        random.Random(derive_seed(seed, "planned lengths", number)).shuffle(drawn)
        scale = self.mean * number / sum(drawn)
        return [min(float(self.limit), length * scale) for length in drawn]

    def _quantiles(self, number: int) -> list[float]:
        return [self.quantile((place + 0.5) / number) for place in range(number)]
