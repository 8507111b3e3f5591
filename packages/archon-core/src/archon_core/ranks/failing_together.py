"""Raises one rank's error on all ranks, so that none enters a collective alone and waits forever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from archon_core.errors import ArchonError, TrainingError
from archon_core.ranks.ranks import Ranks


@dataclass(frozen=True)
class Failure:
    """The failure of a rank, as sent to the others.

    Attributes:
        kind: the exception class to raise.
        text: the message; for errors other than ``ArchonError``, with the class name.
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
        own: the error on this rank, if any.
        failures: the failure of each rank, if any.

    Raises:
        Exception: ``own``; without it, an error of the class of the first failed rank's error.
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
    """If the block fails on one rank, raise on every rank. Collective; the block itself must not be collective.

    Args:
        ranks: the ranks.
        kind: the exception class to share. Others are raised at once on this rank only, which ends the run. A narrower
            class allows collectives in the block, if it is raised only while no rank waits in one.

    Raises:
        Exception: as in ``raise_on_every_rank``.
    """
    own: Exception | None = None
    try:
        yield
    except kind as error:
        own = error
    raise_on_every_rank(own, ranks.gather(None if own is None else Failure.of(own)))
