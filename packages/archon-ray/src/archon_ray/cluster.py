"""Placement groups and actors on a Ray cluster. Every call to Ray has a time limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.exceptions import RayError as RaysOwnError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from archon_core.contracts.launching import StopRequest
from archon_core.errors import ArchonError, ConfigError
from archon_ray.connection import NAMESPACE, connect, disconnect
from archon_ray.groups import Group, Node, explain_no_room
from archon_ray.machine import Machine
from archon_ray.options import RayOptions
from archon_ray.remote import LostError, RayError

CALL_SECONDS = 30.0
PENDING_NOTE_SECONDS = 10.0
"""Time after which the launcher says what it waits for."""

ALONE_SECONDS = 15.0
"""Time to wait for a place on a Ray that the run has for itself and that cannot grow."""

CALLS_AT_ONCE = 8
"""Calls that an actor executes at the same time. On a busy actor with one, a call to end it would never run."""


@dataclass(frozen=True)
class Placed:
    """A placement group that Ray has placed.

    Attributes:
        group: as requested.
        handle: Ray's.
    """

    group: Group
    handle: PlacementGroup


class RayAnswer:
    """Implements ``remote.Answer``."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ready(self) -> bool:
        """Whether it is there, or an error is."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        """The returned value."""
        try:
            return ray.get(self._reference, timeout=CALL_SECONDS)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ArchonError):
                raise cause from None
            raise RayError(f"a process of Ray failed: {error}") from error
        except (RayActorError, GetTimeoutError) as error:
            raise _loss(error) from error
        except RaysOwnError as error:
            raise RayError(f"a process of Ray failed: {error}") from error


def _loss(error: Exception) -> ArchonError:
    """The loss of an actor, with Ray's message on one line. A machine without this package is the user's mistake."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "ModuleNotFoundError" in text:
        return ConfigError(
            f"a machine of the Ray cluster cannot import archon_ray: {text}\ninstall the same packages on all machines"
        )
    return LostError(text)


class RayMachine:
    """An actor; implements ``remote.RemoteMachine``."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def ask(self, method: str, *arguments: Any) -> RayAnswer:
        """Call a method. Returns at once."""
        return RayAnswer(getattr(self._handle, method).remote(*arguments))

    def end(self) -> None:
        """End the actor; processes that it has started end, too."""
        with contextlib.suppress(RaysOwnError, ValueError):
            ray.kill(self._handle, no_restart=True)


def connect_cluster(options: RayOptions, machines: int, note: Callable[[str], None]) -> Cluster:
    """Connect to the cluster that the options name, or start Ray here for a run of one machine.

    Args:
        options: the section ``ray``.
        machines: number of machines of the plan.
        note: prints a line for the user.

    Raises:
        ConfigError: no cluster runs here, and the run needs several machines.
        RayError: the cluster does not answer.
    """
    found = connect(options.address, node_address=options.node_address)
    if not found:
        if machines > 1:
            raise ConfigError(
                f"scheduler.type: found ray, and no Ray cluster on this machine; the plan needs {machines} machines; "
                "start Ray on each of them (`ray start --head`, `ray start --address=...`) and run archon train on "
                "one, or set ray.address"
            )
        note("no Ray cluster runs here; Ray is started on this machine for this run")
        connect("local")
    alone = not found or options.address == "local"
    timeout = min(options.placement_timeout, ALONE_SECONDS) if alone else options.placement_timeout
    return Cluster(options.accelerator, timeout, note)


class Cluster:
    """The cluster to which this process is connected.

    Args:
        accelerator: Ray's name of the devices; null for none.
        placement_timeout: seconds to wait for machines.
        note: prints a line for the user.
    """

    def __init__(self, accelerator: str | None, placement_timeout: float, note: Callable[[str], None]) -> None:
        self._accelerator, self._timeout, self._note = accelerator, placement_timeout, note

    @property
    def nodes(self) -> list[Node]:
        """The machines."""
        return [
            Node(
                found["NodeID"],
                found["NodeManagerHostname"],
                found["NodeManagerAddress"],
                found.get("Resources", {}),
                found["Alive"],
            )
            for found in ray.nodes()
        ]

    def place(self, group: Group, stop: StopRequest) -> Placed | None:
        """Wait for a place for the group; ``None`` if the user stops the run meanwhile.

        Raises:
            ConfigError: Ray has found no place in time.
        """
        bundles = [bundle.resources(self._accelerator) for bundle in group.bundles]
        handle = placement_group(bundles, strategy=group.strategy)
        start, told = time.monotonic(), False
        while not handle.wait(timeout_seconds=1):
            waited = time.monotonic() - start
            if stop.number is not None or waited > self._timeout:
                remove_placement_group(handle)
                if stop.number is not None:
                    return None
                raise ConfigError(
                    explain_no_room(group, self.nodes, ray.available_resources(), self._timeout, self._accelerator)
                )
            if waited > PENDING_NOTE_SECONDS and not told:
                self._note(f"waiting for machines of the Ray cluster for {group}")
                told = True
        return Placed(group, handle)

    def start_machine(self, placed: Placed, index: int) -> RayMachine:
        """Start an actor in a bundle. It may take seconds until it answers."""
        asked = placed.group.bundles[index].resources(self._accelerator)
        # The bundle is on its machine already.
        more = {n: v for n, v in asked.items() if n not in ("CPU", "GPU", "memory") and not n.startswith("node:")}
        options: dict[str, Any] = {
            "num_cpus": asked["CPU"],
            "num_gpus": asked.get("GPU", 0),
            "resources": more,
            "max_restarts": 0,  # a new actor would know nothing of the ranks of the lost one
            "max_concurrency": CALLS_AT_ONCE,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=placed.handle, placement_group_bundle_index=index
            ),
        }
        if "memory" in asked:
            options["memory"] = asked["memory"]
        return RayMachine(ray.remote(PlacedMachine).options(**options).remote())

    def remove(self, placed: Placed) -> None:
        """Free the group's resources, and end what still runs in it."""
        with contextlib.suppress(RaysOwnError):
            remove_placement_group(placed.handle)

    def close(self, registry: str | None) -> None:
        """Disconnect, which frees everything that is left but the registry's actor.

        Args:
            registry: name of that actor, to end it, too; ``None`` without one.
        """
        if registry is not None:
            end_actor(registry)
        disconnect()

    def is_alive(self, node: str) -> bool:
        """Whether Ray reaches a machine."""
        return any(found.id == node and found.alive for found in self.nodes)


def end_actor(name: str) -> None:
    """End a named actor, if there is one."""
    with contextlib.suppress(ValueError, RaysOwnError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


class PlacedMachine(Machine):
    """A ``Machine`` that asks Ray where it is."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        super().__init__(context.get_node_id(), ray.util.get_node_ip_address(), context.gcs_address)
