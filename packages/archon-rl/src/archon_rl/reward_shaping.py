"""What happens to a reward between the reward function and the advantages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OverlongPenalty:
    """A penalty that grows linearly over the last tokens before the limit (DAPO, arXiv:2503.14476, eq. 13).

    Attributes:
        limit: most tokens in a completion.
        tokens: length of the stretch before the limit in which the penalty grows.
        factor: the penalty at the limit.
    """

    limit: int
    tokens: int
    factor: float

    def __call__(self, lengths: Tensor) -> Tensor:
        """The penalty [S], at most 0, of completions of ``lengths`` [S] tokens."""
        excess = (lengths - (self.limit - self.tokens)).clamp(min=0)
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
