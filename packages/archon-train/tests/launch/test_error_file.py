"""The error file: read back as written, and by torch's own launcher; connection losses are known for what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from archon_core.errors import ArchonError, ConfigError
from archon_core.ranks.error_file import (
    describe_error,
    is_connection_loss,
    read_error,
    write_error,
)
from archon_core.ranks.failing_together import Failure, raise_on_every_rank

GLOO_CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
STORE_CLOSED = RuntimeError(
    "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?"
)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    error = raised(ConfigError("found a; write b"))
    error.add_note("in c.yaml")
    told = describe_error(error)
    write_error(told, str(tmp_path / "error.json"))
    assert read_error(tmp_path / "error.json") == told
    assert (told.kind, told.name, told.message) == ("user", "ConfigError", "found a; write b\nin c.yaml")
    assert "raise error" in told.traceback


def test_an_error_that_another_rank_told_is_known_for_that() -> None:
    for own in (OSError("found no space"), ConfigError("found a; write b")):
        assert describe_error(own).kind != "told"
        with pytest.raises(ArchonError) as raised_here:
            raise_on_every_rank(None, [None, Failure.of(own)])
        told = describe_error(raised_here.value)
        assert told.kind == "told"
        assert told.message.startswith("rank 1 failed: ")


def test_torchs_own_launcher_reads_the_file(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = str(tmp_path / "error.json")
    for error, shown in ((ConfigError("found a"), "found a"), (ValueError("b"), "raise error")):
        told = describe_error(raised(error))
        write_error(told, path)
        failure = ProcessFailure(local_rank=1, pid=12345, exitcode=1, error_file=path)
        assert failure.timestamp == int(told.time)
        assert shown in failure.message["extraInfo"]["py_callstack"]
    assert "Traceback" in failure.message["extraInfo"]["py_callstack"]


def test_a_rank_that_left_nothing_readable_has_no_error(tmp_path: Path) -> None:
    assert read_error(tmp_path / "nowhere") is None
    for text in ("", "{", "[]", '{"message": "text"}', '{"message": {"archon": {"kind": "user"}}}'):
        (tmp_path / "error.json").write_text(text)
        assert read_error(tmp_path / "error.json") is None


def test_nothing_is_written_when_no_launcher_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    write_error(describe_error(ValueError("a")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO_CLOSED),
        RuntimeError(STORE_CLOSED),
        RuntimeError("Read error [127.0.0.1]:4242: Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        ConnectionResetError(104, "Connection reset by peer"),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    ],
)
def test_a_lost_connection_is_known(error: Exception) -> None:
    assert is_connection_loss(error)
    assert describe_error(error).kind == "connection"


def test_torchs_error_types_are_known_by_name() -> None:
    import torch.distributed as dist

    assert is_connection_loss(dist.DistNetworkError("what"))
    assert is_connection_loss(dist.DistBackendError("what"))


def test_the_first_exception_of_a_chain_decides() -> None:
    def clean_up_fails() -> None:
        try:
            raise ValueError("the reason")
        finally:
            raise RuntimeError(GLOO_CLOSED)

    def wraps() -> None:
        raise ConfigError("cannot go on") from RuntimeError(GLOO_CLOSED)

    with pytest.raises(RuntimeError) as reason:
        clean_up_fails()
    assert describe_error(reason.value).kind == "error"
    with pytest.raises(ConfigError) as lost:
        wraps()
    assert describe_error(lost.value).kind == "connection"


def test_errors_of_other_kinds_are_not_lost_connections() -> None:
    assert describe_error(ValueError("connection closed by peer")).kind == "error"
    assert describe_error(RuntimeError("shapes do not match")).kind == "error"
