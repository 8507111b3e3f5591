"""Which rank is named, for every mixture of what ranks leave behind."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from archon_core.ranks.error_file import Kind, RankError
from archon_core.ranks.first_failure import (
    RankExit,
    explain,
    first_to_fail,
    is_worth_another_try,
    shared_error,
)


def left(kind: Kind, time: float = 0.0, message: str = "why") -> RankError:
    return RankError(kind, "SomeError", message, "Traceback ...", time)


def ended(rank: int, code: int, *, time: float = 0.0, error: RankError | None = None) -> RankExit:
    return RankExit(rank, 1000 + rank, code, time, error, Path(f"logs/rank-{rank}.log") if rank else None)


KILLED = ended(1, -signal.SIGKILL, time=9)
RAISED = ended(2, 1, error=left("error", 8))
SILENT = ended(3, 7, time=8.5)
TOLD = ended(8, 2, error=left("told", 1))
ABORTED = ended(4, -signal.SIGABRT, time=7)
STOPPED = ended(5, 130, time=6)
LOST = ended(6, 1, error=left("connection", 5))
WELL = ended(7, 0, time=4)

MOST_TELLING_FIRST = (KILLED, RAISED, SILENT, TOLD, ABORTED, STOPPED, LOST, WELL)


@pytest.mark.parametrize("pair", list(itertools.combinations(MOST_TELLING_FIRST, 2)))
def test_the_rank_that_tells_most_is_named_however_late_it_was_seen(pair: tuple[RankExit, RankExit]) -> None:
    assert first_to_fail(pair) is pair[0]
    assert first_to_fail(pair[::-1]) is pair[0]


@pytest.mark.parametrize("kind", ["user", "told", "error", "connection"])
def test_among_equals_the_earliest_is_named_by_the_time_that_it_wrote_itself(kind: Kind) -> None:
    early = ended(3, 1, time=20, error=left(kind, 1))
    late = ended(2, 1, time=10, error=left(kind, 2))
    assert first_to_fail([late, early]) is early


def test_a_rank_that_was_told_first_does_not_make_an_accident_a_mistake_of_the_user() -> None:
    told, own = ended(0, 2, error=left("told", 1)), ended(1, 1, error=left("error", 2))
    assert first_to_fail([told, own]) is own
    assert is_worth_another_try(own)
    assert is_worth_another_try(told), "the rank that told it may be gone without a word"
    assert not is_worth_another_try(ended(0, 2, error=left("user")))


def test_the_first_of_two_killed_ranks_is_named() -> None:
    later = ended(0, -signal.SIGSEGV, time=10)
    assert first_to_fail([later, KILLED]) is KILLED


def test_nobody_is_named_when_all_end_well() -> None:
    assert first_to_fail([ended(0, 0), ended(1, 0)]) is None
    assert first_to_fail([]) is None


def test_a_stop_that_was_agreed_upon_is_no_failure() -> None:
    assert not STOPPED.failed
    assert not WELL.failed
    assert KILLED.failed
    assert RAISED.failed


def test_a_users_error_is_shared_only_when_every_rank_raised_the_same() -> None:
    one, other = ended(0, 2, error=left("user", 1)), ended(1, 2, error=left("user", 2))
    assert shared_error([one, other], 2) is one.error
    assert shared_error([one], 2) is None, "one rank was killed before it could tell"
    assert shared_error([one, ended(1, 2, error=left("user", message="else"))], 2) is None
    assert shared_error([ended(0, 1, error=left("error")), ended(1, 1, error=left("error"))], 2) is None


def test_a_killed_rank_is_explained_by_its_signal_and_the_likely_cause() -> None:
    text = explain(KILLED, 8)
    assert text.startswith("rank 1 of 8 (process 1001) was killed first, by SIGKILL")
    assert "out of memory" in text
    assert text.endswith("its output is in logs/rank-1.log")
    assert "out of memory" not in explain(ended(1, -signal.SIGSEGV), 8)
    assert "by signal 40;" in explain(ended(1, -40), 8)


def test_an_error_is_explained_by_its_message_and_the_rank() -> None:
    assert explain(RAISED, 8) == (
        "SomeError: why\nrank 2 of 8 (process 1002) failed first; its output is in logs/rank-2.log"
    )
    assert explain(ended(0, 2, error=left("user")), 8) == (
        "why\nrank 0 of 8 (process 1000) failed first; its output is above"
    )
    assert "lost a connection, and no rank reported a cause" in explain(LOST, 8)
    assert explain(TOLD, 9).startswith("why\nrank 8 of 9 (process 1008) relayed this error; ")
    assert "with exit code 7 and no error message" in explain(SILENT, 8)
