"""What the ranks of a server do between two steps. The first rank decides, and all execute the same commands."""

from __future__ import annotations

from dataclasses import dataclass, field

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.serving.record import PauseMode
from archon_core.serving.scores import Scores, ScoringRequest
from archon_rollout.decode_rows import NewToken


@dataclass(frozen=True)
class Submit:
    """Start a request.

    Attributes:
        number: unique among the server's requests.
        request: the request; its options were checked.
        streams: report every token.
        records_experts: record routed experts.
        call: number of the call that it arrived with; calls take turns.
        is_short: whether it is all that its call asks for, and has few tokens.
    """

    number: int
    request: GenerationRequest
    streams: bool = False
    records_experts: bool = False
    call: int = 0
    is_short: bool = False


@dataclass(frozen=True)
class Score:
    """Compute log-probabilities of given tokens.

    Attributes:
        number: unique among the server's requests of both kinds.
        request: the sequences, which were checked.
    """

    number: int
    request: ScoringRequest


@dataclass(frozen=True)
class Abort:
    """End requests with the tokens that they have, and drop requests for scores; ``None`` ends all."""

    numbers: frozenset[int] | None = None


@dataclass(frozen=True)
class Pause:
    """Stop generation as ``mode`` says."""

    mode: PauseMode


@dataclass(frozen=True)
class Resume:
    """Continue generation."""


@dataclass(frozen=True)
class Commit:
    """Switch to the received weights of ``version``."""

    version: int


@dataclass(frozen=True)
class BuildCopy:
    """Build the second copy of the weights, if it is missing. Ranks build together, so they do it between two steps."""


@dataclass(frozen=True)
class Stop:
    """End the loop."""


Command = Submit | Score | Abort | Pause | Resume | Commit | BuildCopy | Stop


@dataclass
class Results:
    """What commands and one step produced.

    Attributes:
        finished: number of a request -> its completions.
        scores: number of a request -> its scores.
        failed: number of a request -> the error that ended it.
        tokens: new tokens of requests that stream; ``sample.request`` is the request's number.
        n_tokens: number of tokens in ``finished``.
    """

    finished: dict[int, list[Completion]] = field(default_factory=dict)
    scores: dict[int, Scores] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)
    tokens: list[NewToken] = field(default_factory=list)
    n_tokens: int = 0
