"""The options of ``scheduler.type: ray``: the section ``ray``."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.config.rules import number, option

CLIENT = "ray://"
"""Beginning of addresses of Ray Client, whose driver is outside the cluster."""


def _address(value: str) -> str | None:
    host, colon, port = value.rpartition(":")
    fine = value in ("auto", "local") or (host and colon and port.isdigit() and "/" not in value)
    if fine:
        return None
    advice = "; run archon train on a machine of the cluster, with `ray job submit`" if value.startswith(CLIENT) else ""
    return f"HOST:PORT of the cluster's head, auto, or local{advice}"


def _one_word(value: str) -> str | None:
    return None if value and value.isprintable() and " " not in value else "texts of one word"


@dataclass
class RayOptions:
    """How the processes of a run are placed on a Ray cluster.

    Attributes:
        address: ``HOST:PORT`` of the cluster's head, ``auto`` for the cluster that runs on this machine, or ``local``
            to start Ray on this machine for the run. Null for ``RAY_ADDRESS``, else ``auto``, and ``local`` if no
            cluster runs and the run fits one machine.
        node_address: this machine's address in the cluster, if it has several; null lets Ray find it.
        accelerator: Ray's name of the devices, such as ``GPU`` or ``NPU``; null on a cluster that does not count them.
            With ``cluster.n_gpus_per_node=0`` processes get none.
        placement_timeout: seconds to wait for machines. An autoscaler may need minutes to add some.
        start_timeout: seconds that a process of Ray may need to start on a machine.
        node_timeout: seconds after which a machine that does not answer counts as lost.
        reschedule: after the loss of a machine, start the ranks on other machines from the last checkpoint. With
            ``false``, ``trainer.max_restarts`` counts such losses, too.
    """

    address: str | None = option(None, _address)
    node_address: str | None = option(None, _one_word)
    accelerator: str | None = option("GPU", _one_word)
    placement_timeout: float = option(600.0, number(above=0))
    start_timeout: float = option(120.0, number(above=0))
    node_timeout: float = option(60.0, number(above=0))
    reschedule: bool = True
