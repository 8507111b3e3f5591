"""Where servers are decides how they get weights, unless the user does."""

from __future__ import annotations

import socket

import pytest

from archon_core.contracts.rollout import RolloutConfig
from archon_core.plugins.transport_choice import may_be_elsewhere
from archon_core.ranks.addresses import interface_addresses, is_this_machine

OWN = [one.address for one in interface_addresses() if ":" not in one.address]


@pytest.mark.parametrize(
    ("addresses", "elsewhere"),
    [
        (["127.0.0.1:80", "localhost:81", "[::1]:82"], False),
        ([f"{socket.gethostname()}:80", f"{OWN[0]}:81"], False),
        (["192.0.2.7:80"], True),
        (["127.0.0.1:80", "192.0.2.7:80"], True),
        (["no-such-host.invalid:80"], True),
    ],
)
def test_running_servers_are_where_their_addresses_are(addresses: list[str], elsewhere: bool) -> None:
    assert may_be_elsewhere(RolloutConfig(backend="served:d2", addresses=addresses)) == elsewhere


def test_announced_servers_may_come_from_anywhere_and_started_ones_are_here() -> None:
    assert may_be_elsewhere(RolloutConfig(backend="served:d2", start_servers=False))
    assert not may_be_elsewhere(RolloutConfig(backend="served:d2"))


def test_a_zone_is_no_part_of_an_address() -> None:
    assert is_this_machine("::1%lo")
