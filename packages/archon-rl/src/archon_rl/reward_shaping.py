"""Reward shaping: scaling, bias, clipping and DAPO's overlong penalty. All functions are pure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OverlongPenalty:
    """A penalty on long completions (DAPO, arXiv:2503.14476, eq. 13, times ``factor``).

    With the limit L_max and the buffer L_cache before it, the penalty of a completion of n tokens is 0 up to
    n = L_max - L_cache, then (L_max - L_cache - n) / L_cache, which reaches -1 at the limit and stays there.

    Attributes:
        limit: L_max, in tokens of the completion.
        tokens: L_cache, the buffer in which the penalty grows.
        factor: size of the penalty at and beyond the limit; 1 in the paper.
    """

    limit: int
    tokens: int
    factor: float

    def __call__(self, lengths: Tensor) -> Tensor:
        """Penalties [S], from -factor to 0, for completion lengths ``lengths`` [S] in tokens."""
        excess = (lengths - (self.limit - self.tokens)).clamp(min=0, max=self.tokens)
        return -self.factor * excess / self.tokens


@dataclass(frozen=True)
class RewardShaping:
    """``clip((reward + overlong penalty + bias) * scaling)``.

    Attributes:
        scaling: factor.
        bias: added before scaling.
        clip: largest absolute value of the result.
        overlong: penalty on long completions; ``None`` for none.
    """

    scaling: float = 1.0
    bias: float = 0.0
    clip: float = 20.0
    overlong: OverlongPenalty | None = None

    def __call__(self, rewards: Tensor, lengths: Tensor) -> Tensor:
        """Shaped rewards [S] for raw ``rewards`` [S] and completion ``lengths`` [S] in tokens."""
        if self.overlong is not None:
            rewards = rewards + self.overlong(lengths)
        return ((rewards + self.bias) * self.scaling).clamp(-self.clip, self.clip)
