"""What the launcher does with a cluster, without Ray: its machines are in the test's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archon_core.contracts.launching import Launch, Part, Process, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.contracts.server_registry import NameResolveConfig
from archon_core.layout import parse_layout
from archon_ray import launcher, server_set, watching
from archon_ray.groups import Bundle, Group, Node
from archon_ray.launcher import RayLauncher
from archon_ray.machine import Program
from archon_ray.options import RayOptions
from archon_ray.server_set import ServerSet

from .conftest import NearMachine

GROUP = Group("servers", (Bundle(1), Bundle(1)), "SPREAD")
QUICK = ["-S", "-c", "print('up', flush=True)"]
WAIT = ["-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]


@dataclass
class Stop:
    number: int | None = None
    insisted: bool = False


@dataclass
class Placed:
    group: Group


class FakeMachine(NearMachine):
    """Starts other programs than the launcher asks for, and keeps those. With ``dies``, it is lost when they run."""

    dies = False

    def ask(self, method: str, *arguments: Any) -> Any:
        if method == "report" and self.dies:
            self.fault = "lost"
        if method == "start":
            (programs,) = arguments
            self.programs: list[Program] = programs
            arguments = ([replace(program, arguments=self.does) for program in programs],)
        return super().ask(method, *arguments)

    def end(self) -> None:
        self.machine.kill()
        self.fault = self.fault or "lost"


@dataclass
class FakeCluster:
    """Has room for every group.

    Attributes:
        near: builds machines.
        does: what the processes of the n-th machine do.
        dying: numbers of the machines that are lost when their processes run.
        machines: all that were started.
        placed: all groups; removed ones are ``None``.
        dead: ids of dead nodes.
        on_place: called with every group.
    """

    near: Any
    does: Callable[[int], list[str]]
    dying: set[int] = field(default_factory=set)
    machines: list[FakeMachine] = field(default_factory=list)
    placed: list[Placed | None] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    on_place: Callable[[], None] = lambda: None
    closed: list[str | None] = field(default_factory=list)
    nodes: tuple[Node, ...] = ()

    def place(self, group: Group, stop: Stop) -> Placed | None:
        self.on_place()
        if stop.number is not None:
            return None
        self.placed.append(Placed(group))
        return self.placed[-1]

    def start_machine(self, placed: Placed, index: int) -> FakeMachine:
        number = len(self.machines)
        machine = FakeMachine(self.near(str(number)).machine)
        machine.does, machine.dies = self.does(number), number in self.dying
        self.machines.append(machine)
        return machine

    def remove(self, placed: Placed) -> None:
        self.placed = [None if one is placed else one for one in self.placed]

    def is_alive(self, node: str) -> bool:
        return node not in self.dead

    def close(self, registry: str | None) -> None:
        self.closed.append(registry)


@dataclass
class Run:
    """A launch of one rank on each of two machines."""

    folder: Path
    cluster: FakeCluster
    stop: Stop = field(default_factory=Stop)
    notes: list[str] = field(default_factory=list)

    def launcher(
        self, *, options: RayOptions | None = None, registry: str = "folder", source: Path | None = None
    ) -> RayLauncher:
        if source is None:
            source = self.folder.parent / "run.yaml"
            source.write_text("seed: 1\n", encoding="utf-8")
        spec = SchedulingSpec(cpu=2, env_vars={"A": "b"})
        part = Part("trainer", ("actor",), parse_layout("archon:d2"), (Process(0, 0), Process(1, 1)), scheduling=spec)
        cluster = SimpleNamespace(name_resolve=NameResolveConfig(type=registry))
        config = SimpleNamespace(experiment_name="e", trial_name="t", ray=options or RayOptions(), cluster=cluster)
        plan = ProcessPlan((part,), 2, 0)
        return RayLauncher(Launch(config, plan, source, ["a.b=1"], self.folder, self.stop, self.notes.append))


@pytest.fixture
def run(tmp_path: Path, near: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    folder = tmp_path / "runs" / "e" / "t"
    folder.mkdir(parents=True)
    cluster = FakeCluster(near, lambda number: QUICK)
    monkeypatch.setattr(launcher, "open_cluster", lambda options, machines, note: cluster)
    monkeypatch.setattr(launcher, "DEAD_NODE_SECONDS", 0.3)
    for name in ("GRACE_SECONDS", "MISTAKE_GRACE_SECONDS"):
        monkeypatch.setattr(watching, name, 0.1)
    return Run(folder, cluster)


def test_a_run_is_placed_started_shown_and_removed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    one = run.launcher(registry="ray")
    assert [(exit.rank, exit.code) for exit in one.run(resume=False)] == [(0, 0), (1, 0)]
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank 1: up", "up"]
    assert run.cluster.placed == [None]
    (first,), (second,) = (machine.programs for machine in run.cluster.machines)
    copy = run.folder / "ray" / "config.yaml"
    assert first.arguments == ["-P", "-m", "archon_core.cli", "train", str(copy), "a.b=1"]
    assert copy.read_text(encoding="utf-8") == "seed: 1\n", "later changes of the user's file do not matter"
    assert (first.environment["A"], first.environment["WORLD_SIZE"]) == ("b", "2")
    assert [program.environment["RANK"] for program in (first, second)] == ["0", "1"]
    assert first.environment["MASTER_PORT"] == second.environment["MASTER_PORT"]
    assert run.notes[0].startswith("Ray: 2 ranks on 2 machines")
    one.close()
    one.close()
    assert run.cluster.closed == ["ray_kv_store:e/t"]


def test_the_copy_of_the_configuration_can_be_run_again(run: Run) -> None:
    assert run.launcher().run(resume=False)
    copy = run.folder / "ray" / "config.yaml"
    assert [exit.code for exit in run.launcher(source=copy).run(resume=True)] == [0, 0], "as the run says when it stops"
    assert copy.read_text(encoding="utf-8") == "seed: 1\n"


def test_after_the_loss_of_a_machine_the_ranks_start_again_from_the_checkpoint(run: Run) -> None:
    run.cluster.does = lambda number: WAIT if number < 2 else QUICK
    run.cluster.dying, run.cluster.dead = {1}, {"id-1"}
    assert [(exit.rank, exit.code) for exit in run.launcher().run(resume=False)] == [(0, 0), (1, 0)]
    first, _, second, _ = (machine.programs[0].arguments for machine in run.cluster.machines)
    assert second == [*first, "--resume"]
    assert any("lost; the ranks start again on other machines" in note for note in run.notes)
    assert run.cluster.placed == [None, None]


@pytest.mark.parametrize(("dead", "reschedule"), [({"id-1"}, False), (set(), True)])
def test_a_lost_actor_is_a_failure_if_its_machine_lives_or_the_user_counts_losses(
    run: Run, dead: set[str], reschedule: bool
) -> None:
    run.cluster.does = lambda number: WAIT
    run.cluster.dying, run.cluster.dead = {1}, dead
    (exit,) = run.launcher(options=RayOptions(reschedule=reschedule)).run(resume=False)
    assert exit.rank == 1
    assert "is lost: the actor died" in exit.cause
    assert len(run.cluster.machines) == 2


def test_a_machine_that_is_lost_at_the_start_is_a_failure_that_a_restart_may_mend(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = run.cluster.start_machine

    def start_lost(placed: Placed, index: int) -> FakeMachine:
        machine = start(placed, index)
        machine.fault = "lost"
        return machine

    monkeypatch.setattr(run.cluster, "start_machine", start_lost)
    (exit,) = run.launcher().run(resume=False)
    assert exit.failed
    assert "while the ranks were started: the actor died" in exit.cause
    assert run.cluster.placed == [None]


def test_a_stop_while_the_run_waits_for_machines_ends_it(run: Run) -> None:
    def stop() -> None:
        run.stop.number = 2

    run.cluster.on_place = stop
    assert run.launcher().run(resume=False) == []
    assert run.cluster.machines == []


def test_servers_start_once_are_reported_when_they_end_and_start_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_set, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("PYTHONPATH", "/shared")
    run.cluster.does = lambda number: QUICK if number == 1 else WAIT
    cluster: Any = run.cluster
    servers = ServerSet(cluster, GROUP, Path("s.json"), tmp_path, run.notes.append)
    servers.start(run.stop)
    while not run.notes:
        servers.look()
    assert run.notes == [f"server 1 is gone: it ended with code 0; its output is in {tmp_path}/server-1.log"]
    servers.start(run.stop)
    servers.look()
    assert len(run.cluster.machines) == 3
    (program,) = run.cluster.machines[2].programs
    assert program.arguments == ["-P", "-m", "archon_ray.server", "s.json"]
    assert program.environment == {"PYTHONPATH": "/shared", "ARCHON_SERVER_NUMBER": "1"}
    servers.close()
    assert run.cluster.placed == [None]
    assert run.notes[1:] == []
