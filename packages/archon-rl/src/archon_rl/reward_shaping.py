"""What happens to a reward between the reward function and the advantages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OverlongPenalty:
    """A penalty on long completions (DAPO, arXiv:2503.14476, eq. 13, times ``factor``).

    With the limit L_max and the buffer L_cache before it, a completion of n tokens gets 0 up to L_max - L_cache, then
    (L_max - L_cache - n) / L_cache, which is -1 at the limit, and -1 beyond it.

    Attributes:
        limit: L_max, in tokens of the completion.
        tokens: L_cache, the buffer in which the penalty grows.
        factor: size of the penalty at and beyond the limit; 1 in the paper.
    """

    limit: int
    tokens: int
    factor: float

    def __call__(self, lengths: Tensor) -> Tensor:
        """The penalty [S], from -factor to 0, of completions of ``lengths`` [S] tokens."""
        excess = (lengths - (self.limit - self.tokens)).clamp(min=0, max=self.tokens)
        return -self.factor * excess / self.tokens


@dataclass(frozen=True)
class RewardShaping:
    """``clip((reward + overlong penalty + bias) * scaling)``.

    Attributes:
        scaling: multiplies.
        bias: added before.
        clip: largest size of the result.
        overlong: the penalty; ``None`` for none.
    """

    scaling: float = 1.0
    bias: float = 0.0
    clip: float = 20.0
    overlong: OverlongPenalty | None = None

    def __call__(self, rewards: Tensor, lengths: Tensor) -> Tensor:
        """Shaped rewards [S] for raw ``rewards`` [S] of completions of ``lengths`` [S] tokens."""
        if self.overlong is not None:
            rewards = rewards + self.overlong(lengths)
        return ((rewards + self.bias) * self.scaling).clamp(-self.clip, self.clip)
