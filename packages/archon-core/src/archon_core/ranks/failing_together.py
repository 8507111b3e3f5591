"""One rank's error raised on all of them, so that none goes on alone into a collective and waits there for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from archon_core.errors import ArchonError, TrainingError
from archon_core.ranks.ranks import Ranks


@dataclass(frozen=True)
class Failure:
    """What went wrong on a rank, as the others are told.

    Attributes:
        kind: the class that they raise.
        text: the message, or the error's own name and message when it is not one of ours.
    """

    kind: type[ArchonError]
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe ``error``."""
        if isinstance(error, ArchonError):
            return cls(type(error), str(error))
        return cls(TrainingError, f"{type(error).__name__}: {error}")


def raise_on_every_rank(own: Exception | None, failures: Sequence[Failure | None]) -> None:
    """Raise if any rank has failed.

    Args:
        own: what happened on this rank.
        failures: what happened on each.

    Raises:
        Exception: ``own``, or on a rank without one an error of the same class as the first failed rank's.
    """
    if own is not None:
        raise own
    for rank, failure in enumerate(failures):
        if failure is not None:
            error = failure.kind(f"rank {rank} failed: {failure.text}")
            error.is_relayed = True
            raise error


@contextmanager
def failing_together(ranks: Ranks, *, kind: type[Exception] = Exception) -> Iterator[None]:
    """Raise on every rank when the block has failed on one. Collective; inside the block there may be no collective.

    Args:
        ranks: which.
        kind: the errors that the ranks share. Any other is raised on this rank at once, which ends the run: for a
            block in which ranks do meet, and which raises this kind only when none waits inside any more.

    Raises:
        Exception: as ``raise_on_every_rank`` does.
    """
    own: Exception | None = None
    try:
        yield
    except kind as error:
        own = error
    raise_on_every_rank(own, ranks.gather(None if own is None else Failure.of(own)))
