"""The launcher of ``scheduler.type: ray``: places the run on a cluster, starts its processes, and ends them.
Imports Ray only when it connects.

The trainer gets a new placement group at every start; servers keep theirs. If the launcher is killed, Ray ends its
actors and frees its groups, and ranks end with the actors.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from archon_core.contracts.launching import Launch
from archon_core.layout.diagnostics import count
from archon_core.plugins import registry
from archon_core.plugins.transport_choice import choose_transport_between_machines
from archon_core.ranks.first_failure import RankExit
from archon_core.ranks.log_folder import new_log_folder
from archon_ray.entries import actor_name
from archon_ray.groups import pin, server_group, trainer_group
from archon_ray.machine import Place, Program
from archon_ray.options import RayOptions
from archon_ray.places import check_places, passed_on, rank_environment, threads
from archon_ray.remote import GivenUpError, LostError, wait_for
from archon_ray.server import Servers
from archon_ray.server_set import ServerSet
from archon_ray.watching import Watch, WatchedMachine, error_path, log_path

if TYPE_CHECKING:
    from archon_ray.cluster import Cluster, RayMachine

DEAD_NODE_SECONDS = 40.0
"""Time after the loss of an actor until Ray notices that its machine is gone: by default, five checks 3 s apart."""


class RayLauncher:
    """Implements ``archon_core.contracts.launching.Launcher``.

    Args:
        launch: the run.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._options = launch.config.ray
        self._trainer = launch.plan.trainer
        self._server_parts = [part for part in launch.plan if part.kind == "server"]
        self._folder = launch.folder / "ray"
        self._source = self._folder / f"config{launch.source.suffix}"
        self._overrides = [*launch.overrides]
        self._cluster: Cluster | None = None
        self._servers: ServerSet | None = None

    def run(self, *, resume: bool) -> Sequence[RankExit]:
        """Place and start the ranks, and wait for them."""
        stop = self._launch.stop
        while True:
            cluster = self._cluster or self._begin()
            if self._servers is not None:
                self._servers.start(stop)
            exits, machines = self._attempt(cluster, resume=resume)
            lost = [machine for machine in machines if machine.lost]
            if not lost or not self._options.reschedule or stop.number is not None:
                return exits
            if not self._are_gone(cluster, lost):
                return exits  # an actor ended on a machine that lives
            hosts = ", ".join(machine.place.host for machine in lost)
            self._launch.note(f"{hosts} lost; the ranks start again on other machines, from the last checkpoint")
            resume = True

    def close(self) -> None:
        """End servers, and disconnect from Ray, which frees everything that is left."""
        if self._servers is not None:
            self._servers.close()
            self._servers = None
        if self._cluster is not None:
            config = self._launch.config
            names = config.cluster.name_resolve
            registry = actor_name(names.ray_actor_name, f"{config.experiment_name}/{config.trial_name}")
            self._cluster.close(registry if names.type == "ray" else None)
            self._cluster = None

    def _begin(self) -> Cluster:
        """Connect to Ray, and write what ranks and servers read."""
        options, note = self._options, self._launch.note
        needed = max(node for part in self._launch.plan for node in part.nodes) + 1
        self._cluster = cluster = open_cluster(options, needed, note)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Later attempts must not see changes that the user makes to the file. The command to resume names the copy.
        if not (self._source.exists() and self._source.samefile(self._launch.source)):
            shutil.copyfile(self._launch.source, self._source)
        if self._server_parts:
            part = self._server_parts[0]
            path = self._folder / "servers.json"
            environment = dict(part.scheduling.env_vars)
            Servers(str(self._source), list(self._launch.overrides), str(self._launch.folder), environment).write(path)
            accelerator, role = options.accelerator, part.roles[0]
            group = pin(
                server_group(self._server_parts), part.scheduling, cluster.nodes, accelerator=accelerator, role=role
            )
            self._servers = ServerSet(cluster, group, path, self._launch.folder / "logs", note)
            self._overrides += ["rollout.start_servers=false", f"rollout.weight_transport={self._transport()}"]
        return cluster

    def _attempt(self, cluster: Cluster, *, resume: bool) -> tuple[list[RankExit], list[WatchedMachine]]:
        """Start the ranks, and wait until none runs."""
        part, options, stop = self._trainer, self._options, self._launch.stop
        if stop.number is not None:
            return [], []
        group = pin(
            trainer_group(part), part.scheduling, cluster.nodes, accelerator=options.accelerator, role=part.roles[0]
        )
        placed = cluster.place(group, stop)
        if placed is None:
            return [], []
        machines: list[RayMachine] = []
        try:
            machines += [cluster.start_machine(placed, index) for index in range(len(group.bundles))]
            logs = new_log_folder(self._launch.folder)
            try:
                watched = self._start(machines, logs, resume=resume)
            except GivenUpError:
                return [], []
            except LostError as error:
                cause = f"a process of Ray ended, or did not answer, while the ranks were started: {error}"
                return [RankExit(0, 0, 1, time.time(), cause=cause)], []
            hosts = ", ".join(dict.fromkeys(machine.place.host for machine in watched))
            size = f"{count(len(part.processes), 'rank')} on {count(len(watched), 'machine')}"
            self._launch.note(f"Ray: {size} ({hosts}); logs in {logs}")
            look = self._servers.look if self._servers is not None else _nothing
            return Watch(watched, logs, stop=stop, look=look).run(), watched
        finally:
            for machine in machines:
                machine.end()
            cluster.remove(placed)

    def _start(self, machines: Sequence[RayMachine], logs: Path, *, resume: bool) -> list[WatchedMachine]:
        """Start the ranks on all machines.

        Raises:
            ConfigError: the machines do not fit together.
            LostError: an actor has ended, or does not answer.
            GivenUpError: the user has stopped the run.
        """
        timeout, part = self._options.start_timeout, self._trainer

        def stopped() -> bool:
            return self._launch.stop.number is not None

        folders = [str(self._folder), str(Path.cwd())]
        places: list[Place] = wait_for([machine.ask("describe", folders) for machine in machines], timeout, stopped)
        check_places(places)
        (port,) = wait_for([machines[0].ask("free_port")], timeout, stopped)
        more = ["--resume"] if resume else []
        arguments = ["-P", "-m", "archon_core.cli", "train", str(self._source), *self._overrides, *more]
        common = {**passed_on(os.environ), **part.scheduling.env_vars, **threads(part.scheduling, os.environ)}
        started = []
        for machine, ranks in zip(machines, part.ranks_by_node, strict=True):
            programs = [
                Program(
                    rank,
                    arguments,
                    {**common, **rank_environment(rank, ranks, len(part.processes), places[0].address, port, logs)},
                    str(log_path(logs, rank)),
                    str(Path.cwd()),
                    str(error_path(logs, rank)),
                )
                for rank in ranks
            ]
            started.append(machine.ask("start", programs))
        reports = wait_for(started, timeout, stopped)
        watched = [
            WatchedMachine(machine, place, ranks, self._options.node_timeout)
            for machine, place, ranks in zip(machines, places, part.ranks_by_node, strict=True)
        ]
        for machine, report in zip(watched, reports, strict=True):
            machine.report = report
        return watched

    def _are_gone(self, cluster: Cluster, machines: Sequence[WatchedMachine]) -> bool:
        """Whether Ray has lost sight of one of the machines; it takes its time to notice."""
        deadline = time.monotonic() + DEAD_NODE_SECONDS
        while time.monotonic() < deadline and self._launch.stop.number is None:
            if any(not cluster.is_alive(machine.place.node) for machine in machines):
                return True
            time.sleep(0.2)
        return False

    def _transport(self) -> str:
        asked, layout = self._launch.config.rollout.weight_transport, self._server_parts[0].layout
        return choose_transport_between_machines(asked, layout, registry())


def open_cluster(options: RayOptions, machines: int, note: Callable[[str], None]) -> Cluster:
    """Connect to Ray.

    Args:
        options: the section ``ray``.
        machines: number of machines of the plan.
        note: prints a line for the user.
    """
    from archon_ray.cluster import connect_cluster  # imports Ray

    return connect_cluster(options, machines, note)


def _nothing() -> None:
    """Nothing to look at."""
