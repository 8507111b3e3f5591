"""How ranks ended, from what their machines left behind; and beats that stop."""

import errno
import signal
from pathlib import Path
from typing import Any

import pytest

from archon_core.ranks.first_failure import first_to_fail
from archon_core.ranks.local_ranks import RankStatus
from archon_slurm.attempt import Attempt, End, NodeStatus
from archon_slurm.silence import Silence

RANKS = ((0, 1), (2, 3))


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_ranks_that_their_machine_killed_did_not_end_by_themselves(attempt: Attempt) -> None:
    attempt.write_status(
        NodeStatus(0, "n1", ended=True, ranks=[RankStatus(0, 10, -9, 2.0, True), RankStatus(1, 11, 0)])
    )
    attempt.write_status(
        NodeStatus(1, "n2", ended=True, ranks=[RankStatus(2, 12, -9, 3.0, True), RankStatus(3, 13, 7, 1.0)])
    )
    exits = attempt.exits(2, RANKS, lost={})
    assert [(exit.rank, exit.code, exit.host) for exit in exits] == [(1, 0, "n1"), (3, 7, "n2")]
    first = first_to_fail(exits)
    assert first is not None
    assert (first.rank, first.pid, first.log) == (3, 13, attempt.folder / "rank-3.log")


def test_ranks_of_a_lost_machine_have_its_cause(attempt: Attempt) -> None:
    attempt.write_status(NodeStatus(0, "n1", ended=True, ranks=[RankStatus(0, 10, 1, 2.0), RankStatus(1, 11, 1, 2.0)]))
    attempt.write_status(NodeStatus(1, "n2", beat=9, ranks=[RankStatus(2, 12), RankStatus(3, 13)]))
    exits = {exit.rank: exit for exit in attempt.exits(2, RANKS, lost={1: "n2 does not report any more"})}
    assert exits[0].cause == ""
    assert exits[2].cause == exits[3].cause == "n2 does not report any more"
    assert exits[3].failed


def test_a_job_that_never_started_has_lost_all_ranks(attempt: Attempt) -> None:
    exits = attempt.exits(2, RANKS, lost=dict.fromkeys((0, 1), "job 3 is FAILED"))
    assert [(exit.pid, exit.cause) for exit in exits] == [(0, "job 3 is FAILED")] * 4


def test_the_first_end_stays_except_for_a_stop(attempt: Attempt) -> None:
    assert attempt.end() is None
    attempt.write_end(End("stop", signal=signal.SIGINT))
    attempt.write_end(End("failure", 1))
    attempt.write_end(End("lost", 0))
    assert attempt.end() == End("failure", 1)


def test_a_file_that_becomes_stale_while_it_is_read_is_read_again(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt.write_end(End("failure", 1))
    original, errors = Path.read_text, [OSError(errno.ESTALE, "Stale file handle")]

    def read_text(self: Path, *arguments: Any, **options: Any) -> str:
        if errors:
            raise errors.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert attempt.end() == End("failure", 1)


def test_a_beat_that_does_not_change_becomes_silence() -> None:
    now = [0.0]
    silence = Silence(10, clock=lambda: now[0])
    assert not silence.of("n1", 1)
    now[0] = 9
    assert not silence.of("n1", 1)
    now[0] = 10
    assert silence.of("n1", 1)
    assert not silence.of("n1", 2), "it reports again"
    now[0] = 19
    assert not silence.of("n1", 2)
    assert not silence.of("n2", None), "each machine is watched apart"


def test_a_reader_that_was_suspended_itself_waits_for_a_beat_again() -> None:
    now = [0.0]
    silence = Silence(10, clock=lambda: now[0])
    assert not silence.of("n1", 1)
    now[0] = 1000
    assert not silence.of("n1", 1), "the whole job was suspended"
    for now[0] in (1005, 1009):
        assert not silence.of("n1", 1)
    now[0] = 1010
    assert silence.of("n1", 1)
