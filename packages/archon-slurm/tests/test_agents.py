"""The processes of a job on its machines, without SLURM: two agents on this machine share an attempt."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archon_core.ranks.local_ranks import RankStatus
from archon_slurm.attempt import Attempt, End, NodeStatus, TrainerJob, attempt_folder

DEADLINE = 60.0

RANK = """
import os, signal, sys, time
rank, folder = int(os.environ["RANK"]), sys.argv[1]
place = [os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
print("rank", rank, *place, os.environ["MINE"], *sys.argv[3:], flush=True)
what = sys.argv[2]
if what == "exit-7" and rank == 3:
    sys.exit(7)
if what != "fine":
    def stop(*_):
        time.sleep(10 if what == "slow-stop" and rank == 0 else 0)
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    while True:
        time.sleep(0.05)
"""


class Machines:
    """Two agents, as ``srun`` would start them."""

    def __init__(self, folder: Path, what: str, *, restarts: int = 0, node_timeout: float = 60.0) -> None:
        script = folder / "rank.py"
        script.write_text(RANK)
        job = TrainerJob([str(script), str(folder), what], ((0, 1), (2, 3)), str(folder), {"MINE": "yes"}, node_timeout)
        job.write(folder / "trainer.json")
        self.attempt = Attempt(attempt_folder(folder, "5", restarts))
        self.agents = [self._start(folder, node, restarts) for node in (0, 1)]

    @staticmethod
    def _start(folder: Path, node: int, restarts: int) -> subprocess.Popen[bytes]:
        variables = {"SLURM_JOB_ID": "5", "SLURM_NODEID": str(node), "SLURM_NNODES": "2", "SLURMD_NODENAME": f"m{node}"}
        variables |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        command = [sys.executable, "-m", "archon_slurm.agent", str(folder / "trainer.json")]
        return subprocess.Popen(command, env={**os.environ, **variables})

    def codes(self) -> list[int]:
        return [agent.wait(DEADLINE) for agent in self.agents]

    def status(self, node: int) -> NodeStatus:
        found = self.attempt.status(node)
        assert found is not None
        return found

    def wait_for_ranks(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while not all(self.attempt.log(rank).exists() and self.attempt.log(rank).read_text() for rank in range(4)):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()


@pytest.fixture
def started() -> Iterator[list[Machines]]:
    machines: list[Machines] = []
    yield machines
    for one in machines:
        one.end()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_get_their_places_and_a_later_attempt_resumes(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "fine"))
    assert started[0].codes() == [0, 0]
    attempt = started[0].attempt
    place = attempt.rendezvous()
    assert place is not None
    told = f"4 2 {place[0]} {place[1]} yes\n"
    logs = [attempt.log(rank).read_text() for rank in range(4)]
    assert logs == [f"rank {rank} {rank % 2} {told}" for rank in range(4)]
    assert [rank.code for node in (0, 1) for rank in started[0].status(node).ranks] == [0] * 4
    started.append(Machines(tmp_path, "fine", restarts=1))
    assert started[1].codes() == [0, 0]
    assert started[1].attempt.log(0).read_text().endswith("yes --resume\n")
    end = attempt.end()
    assert end is not None
    assert end.kind == "superseded"


@pytest.mark.wide
def test_a_failing_rank_ends_the_ranks_of_all_machines(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "exit-7"))
    codes = started[0].codes()
    assert codes[1] == 7
    assert codes[0] != 0
    own = {rank.rank: rank for node in (0, 1) for rank in started[0].status(node).ranks}
    assert (own[3].code, own[3].killed) == (7, False)
    assert all(own[rank].killed for rank in (0, 1, 2))
    assert not any(alive(rank.pid) for rank in own.values())
    end = started[0].attempt.end()
    assert end is not None
    assert (end.kind, end.node, end.reason) == ("failure", 1, "rank 3 ended with code 7")


def test_a_signal_to_one_machine_stops_the_ranks_of_all(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "wait"))
    started[0].wait_for_ranks()
    started[0].agents[1].send_signal(signal.SIGTERM)
    assert started[0].codes() == [143, 143]
    assert {rank.code for node in (0, 1) for rank in started[0].status(node).ranks} == {143}


@pytest.mark.wide
def test_a_machine_that_has_stopped_waits_for_the_one_that_writes_the_checkpoint(
    tmp_path: Path, started: list[Machines]
) -> None:
    started.append(Machines(tmp_path, "slow-stop"))
    started[0].wait_for_ranks()
    started[0].agents[1].send_signal(signal.SIGTERM)
    assert started[0].agents[1].wait(DEADLINE) == 143
    assert started[0].status(0).ended, "SLURM kills the others when a machine ends with a code"


@pytest.mark.wide
def test_ranks_end_when_the_other_machine_falls_silent(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "wait", node_timeout=3.0))
    machines = started[0]
    machines.wait_for_ranks()
    ranks = [rank.pid for rank in machines.status(1).ranks]
    machines.agents[1].send_signal(signal.SIGSTOP)  # its ranks run on, like those behind a broken network
    assert machines.agents[0].wait(DEADLINE) != 0
    end = machines.attempt.end()
    assert end is not None
    assert (end.kind, end.node, end.reason) == ("lost", 1, "m1 has not reported for 3 s")
    machines.agents[1].send_signal(signal.SIGCONT)
    assert machines.agents[1].wait(DEADLINE) != 0
    assert not any(map(alive, ranks)), "the machine comes back and ends them"


@pytest.mark.wide
def test_an_attempt_ends_when_a_later_one_has_begun(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "wait"))
    started[0].wait_for_ranks()
    started.append(Machines(tmp_path, "wait", restarts=1))
    started[1].wait_for_ranks()
    assert all(agent.poll() is not None for agent in started[0].agents), "never are there two attempts at once"
    started[1].attempt.write_end(End("kill"))
    assert all(code != 0 for code in started[1].codes())


@pytest.mark.wide
def test_a_new_attempt_waits_for_a_silent_one_no_longer_than_the_limit(tmp_path: Path, started: list[Machines]) -> None:
    before = Attempt(attempt_folder(tmp_path, "5", 0))
    before.folder.mkdir(parents=True)
    before.write_status(NodeStatus(1, "m1", beat=7, ranks=[RankStatus(2, 1)]))  # and never again
    started.append(Machines(tmp_path, "fine", restarts=1, node_timeout=1.0))
    assert started[0].codes() == [0, 0]


@pytest.mark.wide
def test_ranks_outlive_a_file_system_that_is_away_for_a_moment(tmp_path: Path, started: list[Machines]) -> None:
    started.append(Machines(tmp_path, "wait"))
    machines = started[0]
    machines.wait_for_ranks()
    beats = [machines.status(node).beat for node in (0, 1)]
    away = machines.attempt.folder.rename(tmp_path / "away")
    time.sleep(2.5)  # two reports of each machine fail
    away.rename(machines.attempt.folder)
    deadline = time.monotonic() + DEADLINE
    while [machines.status(node).beat for node in (0, 1)] <= beats:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    machines.agents[0].send_signal(signal.SIGTERM)
    assert machines.codes() == [143, 143], "they were asked to stop, and not killed"


def test_a_machine_that_cannot_write_the_run_folder_says_so(tmp_path: Path, started: list[Machines]) -> None:
    (tmp_path / "job-5").write_text("no folder")
    TrainerJob(["x"], ((0,),), str(tmp_path), {}).write(tmp_path / "trainer.json")
    variables = {"SLURM_JOB_ID": "5", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURMD_NODENAME": "m0"}
    command = [sys.executable, "-m", "archon_slurm.agent", str(tmp_path / "trainer.json")]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cluster.fileroot: m0 cannot write into {tmp_path}/job-5/attempt-0: ")


def test_outside_a_job_the_agent_says_where_it_belongs(tmp_path: Path) -> None:
    TrainerJob(["x"], ((0,),), str(tmp_path), {}).write(tmp_path / "trainer.json")
    command = [sys.executable, "-m", "archon_slurm.agent", str(tmp_path / "trainer.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it runs once per machine of a job, by srun" in done.stderr
