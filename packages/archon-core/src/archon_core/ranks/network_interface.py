"""The network interface of the ranks' process groups: the one on the way to the rendezvous, unless the user sets one.

Without a setting, gloo takes the interface with the address that the host name resolves to. On many machines that is
the loopback address, or a network that the other machines cannot reach. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_core.ranks.addresses import address_towards, interface_of, is_loopback, own_address
from archon_core.ranks.environment import RankEnvironment

logger = logging.getLogger(__name__)

GLOO = "GLOO_SOCKET_IFNAME"
NCCL = "NCCL_SOCKET_IFNAME"

CHOSEN = "ARCHON_SOCKET_IFNAME"
"""Environment variable with the interface that Archon chose. If ``GLOO`` has another value, the user set that."""

UNSET = "not set"

RESOLVE_SECONDS = 300.0
"""Time to wait until the name of the rendezvous resolves: on Kubernetes, a pod's name appears some time after it."""

RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class InterfaceChoice:
    """The interface of a rank.

    Attributes:
        variables: environment variables to set.
        decisions: what to record; empty if all ranks are on one machine and the user set nothing.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()


def interface_of_user(environment: Mapping[str, str] = os.environ) -> str | None:
    """The interface that the user set for gloo; ``None`` if there is none, or Archon chose it."""
    found = environment.get(GLOO)
    return found if found and found != environment.get(CHOSEN) else None


def choose_interface(
    place: RankEnvironment,
    environment: Mapping[str, str] = os.environ,
    *,
    nccl: bool = False,
    towards: Callable[[str], str] = address_towards,
    interface: Callable[[str], str | None] = interface_of,
    own: Callable[[], str] = own_address,
) -> InterfaceChoice:
    """Choose the interface of a rank by the address of its rendezvous, ``MASTER_ADDR``.

    Args:
        place: the rank.
        environment: its environment variables.
        nccl: whether the ranks use NCCL, too.
        towards: host -> address of this machine on the way there.
        interface: address of this machine -> interface.
        own: an address of this machine for others.

    Raises:
        OSError: ``MASTER_ADDR`` cannot be resolved, or no network leads there.
    """
    host = environment["MASTER_ADDR"]
    address = towards(host)
    several = place.world_size > place.local_world_size
    if several and is_loopback(address) and not is_loopback(host):
        # /etc/hosts of many machines maps their own name to 127.0.1.1, which the other machines do not see.
        address = own()
    name = interface(address)
    users = interface_of_user(environment)
    if users is not None:
        return InterfaceChoice(decisions=_kept(GLOO, users, name, host) if several else ())
    if name is None:
        reason = f"no interface has {address}, used towards MASTER_ADDR={host}; gloo takes that of the host name"
        return InterfaceChoice(decisions=(Decision(GLOO, UNSET, UNSET, reason),) if several else ())
    variables = {GLOO: name}
    if nccl and several and NCCL not in environment and not is_loopback(address):
        variables[NCCL] = f"={name}"  # "=": this name exactly, rather than all that begin with it
    reason = f"{address} is on the way to MASTER_ADDR={host}"
    decisions = [Decision(variable, UNSET, value, reason) for variable, value in variables.items() if several]
    return InterfaceChoice({**variables, CHOSEN: name}, tuple(decisions))


def _kept(variable: str, users: str, name: str | None, host: str) -> tuple[Decision, ...]:
    if name is None or name in users.split(","):
        return ()
    return (Decision(variable, users, users, f"set by the user; {name} is on the way to MASTER_ADDR={host}"),)


def use_interface(
    place: RankEnvironment,
    environment: MutableMapping[str, str] = os.environ,
    *,
    nccl: bool = False,
    patience: float = RESOLVE_SECONDS,
) -> tuple[Decision, ...]:
    """Choose the interface of this rank and set it, before any process group exists; returns the decisions.

    Args:
        place: this rank.
        environment: to set it in.
        nccl: whether the ranks use NCCL, too.
        patience: seconds to wait until ``MASTER_ADDR`` resolves.

    Raises:
        ConfigError: ``MASTER_ADDR`` does not resolve within ``patience`` seconds, or no network leads there.
    """
    end = time.monotonic() + patience
    is_first_try = True
    while True:
        try:
            choice = choose_interface(place, environment, nccl=nccl)
        except OSError as error:
            host = environment["MASTER_ADDR"]
            if time.monotonic() > end:
                raise ConfigError(
                    f"MASTER_ADDR: found {host!r}, which this machine cannot reach: {error}; set it to a name or "
                    "address of the first rank's machine that every machine resolves"
                ) from error
            if is_first_try:
                logger.warning("waiting for MASTER_ADDR=%s: %s", host, error)
            is_first_try = False
            time.sleep(min(RETRY_SECONDS, patience))
        else:
            environment.update(choice.variables)
            return choice.decisions
