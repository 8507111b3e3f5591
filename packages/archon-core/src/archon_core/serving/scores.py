"""Scoring: log-probabilities of given tokens, which a server computes without generating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.errors import ServerError
from archon_core.serving.wire import fields_of


@dataclass(frozen=True)
class ScoringRequest:
    """Sequences to score in one call.

    Attributes:
        sequences: token ids, at least one per sequence.
        temperature: divide logits by this.
    """

    sequences: tuple[tuple[int, ...], ...]
    temperature: float = 1.0

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True)
class Scores:
    """The answer to a ``ScoringRequest``.

    Attributes:
        logprobs: per sequence, the log-probability of each token except the first, given those before it.
        version: version of the weights that computed them.
    """

    logprobs: tuple[tuple[float, ...], ...]
    version: int

    @classmethod
    def of_sequences(
        cls, scored: Sequence[tuple[tuple[float, ...], int]], request: ScoringRequest, address: str
    ) -> Scores:
        """Scores and version of each sequence as one answer, checked.

        Raises:
            ServerError: several versions, or as ``check``.
        """
        versions = {version for _, version in scored}
        if len(versions) != 1:
            raise ServerError(
                f"server {address}: found scores of versions {sorted(versions)} in one request; allowed is one; its "
                "weights changed meanwhile: repeat the request"
            )
        return cls(tuple(row for row, _ in scored), versions.pop()).check(request, address)

    def check(self, request: ScoringRequest, address: str) -> Scores:
        """These scores, if they fit the request.

        Raises:
            ServerError: a sequence has another number of values, or a value is no log-probability.
        """
        found = [len(values) for values in self.logprobs]
        expected = [len(sequence) - 1 for sequence in request.sequences]
        if found != expected:
            raise ServerError(
                f"server {address}: found scores of {_shown(found)} tokens per sequence; the request has "
                f"{_shown(expected)} after the first; check the server's version"
            )
        wrong = next((v for values in self.logprobs for v in values if not (math.isfinite(v) and v <= ROUNDING)), None)
        if wrong is not None:
            raise ServerError(f"server {address}: found the log-probability {wrong}; check the server's weights")
        return self


ROUNDING = 1e-3
"""Largest excess of a log-probability over 0 that rounding may explain."""


@dataclass(frozen=True)
class ServedModelInfo:
    """A server's model, as far as the server knows it.

    Attributes:
        name: what the server was started with.
        version: of the weights that it loaded at its start.
        vocab_size: number of token ids; ``None`` if the server does not report it.
        max_positions: longest sequence; ``None`` for no limit, or if the server does not report it.
        fingerprint: of the checkpoint files that it loaded (``archon_engine.checkpoint.fingerprint``); empty if the
            server does not report it.
    """

    name: str
    version: int = 0
    vocab_size: int | None = None
    max_positions: int | None = None
    fingerprint: str = ""

    def as_data(self) -> dict[str, Any]:
        """The description as a JSON object."""
        return dict(vars(self))

    @classmethod
    def from_data(cls, data: Any) -> ServedModelInfo:
        """Read a received description. Raises ServerError if it is malformed."""
        optional = (int, type(None))
        return cls(
            **fields_of(cls, data, name=str, version=int, vocab_size=optional, max_positions=optional, fingerprint=str),
        )


def _shown(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:4]))
    return f"{text}, ..." if len(numbers) > 4 else text or "no"
