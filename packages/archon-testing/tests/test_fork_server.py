"""A fork server starts programs as ``subprocess.Popen`` does: folder, environment, arguments, output and exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archon_testing.fork_server import ForkedProcess, ForkServer, ForkServerEndedError
from archon_testing.shared_fork_server import ADDRESS_BYTES, SharedForkServer

pytestmark = pytest.mark.usefixtures("fork_server_address")  # skips where there are no fork servers

PROGRAM = """
import os, signal, sys, time

print(os.getcwd(), *sys.argv[1:], os.environ["WORD"], os.getppid(), os.getpgid(0) == os.getpid(), flush=True)
print("a complaint", file=sys.stderr)
how = sys.argv[1]
if how == "raise":
    raise ValueError("no gold")
if how == "wait":
    time.sleep(100)
sys.exit(3 if how == "exit" else None)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedForkServer]:
    """Without torch, which these programs do not need."""
    server = SharedForkServer(("a_missing_module.of_a_missing_package",))
    yield server
    server.close()


@pytest.fixture(scope="module")
def forks(shared: SharedForkServer) -> Iterator[ForkServer]:
    server = ForkServer(address=shared.address)
    yield server
    server.close()


class Started:
    """The program above with one argument, as a module or by the path of its file."""

    def __init__(self, forks: ForkServer, folder: Path, how: str, *, by_path: bool = False) -> None:
        (folder / "site").mkdir(parents=True)
        file = folder / "site" / "some_program.py"
        file.write_text(PROGRAM, encoding="utf-8")
        self.folder = folder
        program = [str(file)] if by_path else ["-P", "-m", "some_program"]
        environment = {**os.environ, "WORD": "gold", "PYTHONPATH": str(folder / "site")}
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = forks.popen(
                [sys.executable, *program, how], env=environment, cwd=folder, stdout=out, stderr=err
            )
        assert isinstance(self.process, ForkedProcess)

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(encoding="utf-8")


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("exit", 3), ("raise", 1)])
def test_a_program_gets_its_folder_environment_and_outputs_and_returns_its_code(
    forks: ForkServer, tmp_path: Path, how: str, code: int
) -> None:
    started = Started(forks, tmp_path, how)
    assert started.process.wait(60) == code
    assert started.process.poll() == code
    assert started.out == f"{tmp_path} {how} gold {os.getpid()} True\n"
    assert started.err.startswith("a complaint\n")
    assert ("ValueError: no gold" in started.err) == (how == "raise")


def test_a_script_is_run_by_its_path_and_each_owner_is_the_parent_of_its_programs(
    shared: SharedForkServer, forks: ForkServer, tmp_path: Path
) -> None:
    other = ForkServer(address=shared.address)
    first = Started(forks, tmp_path / "first", "wait", by_path=True)
    second = Started(other, tmp_path / "second", "exit", by_path=True)
    assert second.process.wait(60) == 3
    assert second.out == f"{tmp_path / 'second'} exit gold {os.getpid()} True\n"
    other.close()
    assert first.process.poll() is None, "it has another owner"
    first.process.kill()
    assert first.process.wait(60) == -signal.SIGKILL


def test_a_running_program_times_out_and_is_killed(forks: ForkServer, tmp_path: Path) -> None:
    started = Started(forks, tmp_path, "wait")
    while not started.out:
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        started.process.wait(0.05)
    started.process.kill()
    assert started.process.wait(60) == -signal.SIGKILL
    started.process.kill()  # it has ended: nothing happens


def test_other_programs_are_started_as_usual(forks: ForkServer) -> None:
    for command in (["true"], [sys.executable, "-c", "pass"]):
        process = forks.popen(command)
        assert isinstance(process, subprocess.Popen)
        assert process.wait(60) == 0


def test_a_fork_server_that_cannot_import_a_module_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text('raise ValueError("no gold")', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    server = SharedForkServer(("broken_module",))
    try:
        for _ in ("owner for which it imports", "later owner"):
            with (
                pytest.raises(ForkServerEndedError, match=r"(?s)stderr:\nTraceback .*ValueError: no gold"),
                closing(ForkServer(address=server.address)) as forks,
            ):
                forks.popen([sys.executable, "-m", "some_program"])
    finally:
        server.close()


def test_a_long_path_for_temporary_files_leaves_room_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a" * ADDRESS_BYTES)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = SharedForkServer(())
    try:
        ForkServer(address=server.address).close()
        assert list(long.iterdir()) == []
    finally:
        server.close()
