"""The network interface of ranks: by the address of the rendezvous, unless the user sets one."""

from __future__ import annotations

import socket
import sys

import pytest

from archon_core.errors import ConfigError
from archon_core.ranks import addresses
from archon_core.ranks.addresses import (
    InterfaceAddress,
    address_towards,
    free_port,
    free_ports,
    interface_addresses,
    interface_of,
    is_loopback,
    own_address,
)
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.network_interface import CHOSEN, GLOO, NCCL, choose_interface, interface_of_user, use_interface
from archon_core.ranks.srun import srun_environment

ONE_HOST, TWO_HOSTS = RankEnvironment(1, 2, 1, 2), RankEnvironment(1, 2, 0, 1)
INTERFACES = {"127.0.0.1": "lo", "10.0.0.2": "eth0", "192.168.1.2": "wlan0"}


def chosen(place, master="10.0.0.1", *, leads_to="10.0.0.2", nccl=True, **environment):
    return choose_interface(
        place,
        {"MASTER_ADDR": master, **environment},
        nccl=nccl,
        towards=lambda host: leads_to,
        interface=INTERFACES.get,
        own=lambda: "192.168.1.2",
    )


def test_ranks_of_several_hosts_use_the_interface_that_leads_to_the_rendezvous_and_record_it():
    choice = chosen(TWO_HOSTS)
    assert choice.variables == {GLOO: "eth0", CHOSEN: "eth0", NCCL: "=eth0"}
    assert [(one.option, one.requested, one.effective) for one in choice.decisions] == [
        (GLOO, "not set", "eth0"),
        (NCCL, "not set", "=eth0"),
    ]
    assert "10.0.0.2 is on the way to MASTER_ADDR=10.0.0.1" in choice.decisions[0].reason
    assert chosen(TWO_HOSTS, nccl=False).variables == {GLOO: "eth0", CHOSEN: "eth0"}


def test_ranks_of_one_host_use_it_too_and_leave_nccl_alone():
    choice = chosen(ONE_HOST, "127.0.0.1", leads_to="127.0.0.1")
    assert choice.variables == {GLOO: "lo", CHOSEN: "lo"}
    assert choice.decisions == ()


def test_a_setting_of_the_user_wins_and_is_recorded_where_another_would_be_chosen():
    choice = chosen(TWO_HOSTS, **{GLOO: "wlan0"})
    assert choice.variables == {}
    [decision] = choice.decisions
    assert (decision.option, decision.requested, decision.effective) == (GLOO, "wlan0", "wlan0")
    assert "set by the user; eth0 is on the way" in decision.reason
    assert chosen(TWO_HOSTS, **{GLOO: "ib0,eth0"}).decisions == ()
    assert chosen(ONE_HOST, **{GLOO: "wlan0"}).decisions == ()
    assert NCCL not in chosen(TWO_HOSTS, **{NCCL: "ib"}).variables


def test_a_choice_of_archon_in_the_environment_is_not_a_users():
    inherited = {GLOO: "lo", CHOSEN: "lo"}
    assert interface_of_user(inherited) is None
    assert chosen(TWO_HOSTS, **inherited).variables[GLOO] == "eth0"
    assert interface_of_user({GLOO: "lo"}) == "lo"
    assert interface_of_user({GLOO: "eth1", CHOSEN: "lo"}) == "eth1"


def test_a_name_of_this_host_that_resolves_to_its_loopback_stands_for_its_own_address():
    assert chosen(TWO_HOSTS, "node-0", leads_to="127.0.1.1").variables[GLOO] == "wlan0"
    assert chosen(ONE_HOST, "node-0", leads_to="127.0.0.1").variables[GLOO] == "lo"
    assert chosen(TWO_HOSTS, "localhost", leads_to="127.0.0.1").variables[GLOO] == "lo"
    assert chosen(TWO_HOSTS, "127.0.0.1", leads_to="127.0.0.1").variables.get(NCCL) is None


def test_an_address_without_an_interface_is_recorded():
    choice = chosen(TWO_HOSTS, leads_to="10.0.0.9")
    assert choice.variables == {}
    assert "no interface has 10.0.0.9" in choice.decisions[0].reason


def test_a_rendezvous_that_does_not_resolve_in_time_is_an_error_that_names_it():
    environment = {"MASTER_ADDR": "no-such-host.invalid"}
    with pytest.raises(
        ConfigError, match=r"MASTER_ADDR: found 'no-such-host.invalid', which this machine cannot reach"
    ):
        use_interface(TWO_HOSTS, environment, patience=0.0)
    assert environment == {"MASTER_ADDR": "no-such-host.invalid"}


def test_a_rank_sets_its_variables():
    environment = {"MASTER_ADDR": "127.0.0.1"}
    assert use_interface(ONE_HOST, environment) == ()
    assert environment == {"MASTER_ADDR": "127.0.0.1", GLOO: interface_of("127.0.0.1"), CHOSEN: environment[GLOO]}


def test_the_loopback_interface_is_among_those_of_this_machine():
    names = {name for _, name in socket.if_nameindex()}
    found = interface_addresses()
    assert {one.name for one in found} <= names
    assert any(one.address == "127.0.0.1" and one.is_loopback for one in found)
    assert interface_of("127.0.0.1") in ("lo", "lo0")
    assert interface_of("192.0.2.77") is None
    assert address_towards("127.0.0.1") == "127.0.0.1"


def test_the_own_address_is_one_that_the_machine_has_also_without_a_default_route(monkeypatch):
    monkeypatch.setattr(
        addresses, "interface_addresses", lambda: [InterfaceAddress(name, one) for one, name in INTERFACES.items()]
    )

    def no_route(host, port=9):
        raise OSError("network is unreachable")

    monkeypatch.setattr(addresses, "address_towards", no_route)
    resolved = {"stale": "10.0.0.77", "debian": "127.0.1.1", "good": "192.168.1.2"}
    monkeypatch.setattr(addresses.socket, "gethostbyname", resolved.__getitem__)
    monkeypatch.setattr(addresses.socket, "gethostname", lambda: "debian")
    assert own_address() == "10.0.0.2"
    assert own_address("stale") == "10.0.0.2"
    assert own_address("", "good") == "192.168.1.2"
    only_ipv6 = [("lo", "::1"), ("eth0", "fe80::2"), ("eth0", "2001:db8::2")]
    monkeypatch.setattr(addresses, "interface_addresses", lambda: [InterfaceAddress(*one) for one in only_ipv6])
    assert own_address() == "2001:db8::2", "a link-local address means nothing to other machines without its zone"
    monkeypatch.setattr(addresses, "interface_addresses", lambda: [InterfaceAddress("lo", "127.0.0.1")])
    assert is_loopback(own_address())


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::1"])
def test_a_free_port_is_one_of_the_address(host):
    if ":" in host and not any(one.address == host for one in interface_addresses()):
        pytest.skip("this machine has no IPv6")
    assert 0 < free_port(host) < 2**16


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which ports outgoing connections take")
def test_free_ports_differ_and_are_not_those_of_outgoing_connections(monkeypatch, tmp_path):
    ports = free_ports(50, "127.0.0.1")
    assert len(set(ports)) == 50
    first = int(addresses.OUTGOING_PORTS.read_text().split()[0])
    assert all(addresses.LOWEST_PORT <= port < first for port in ports)
    monkeypatch.setattr(addresses, "OUTGOING_PORTS", tmp_path / "unknown")
    assert 0 < free_port() < 2**16


SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_PROCID": "17",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu-[08-09],n1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
}


def test_a_task_of_srun_is_a_rank():
    assert srun_environment(SRUN) == {
        "RANK": "17",
        "WORLD_SIZE": "20",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu-08",
        "MASTER_PORT": str(20000 + 31 * 7 + 2),
    }
    assert srun_environment({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"})["MASTER_ADDR"] == "10.0.0.1"


def test_a_batch_script_and_a_rank_of_torchrun_are_no_tasks_of_srun():
    assert srun_environment({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}) == {}
    assert srun_environment({**SRUN, "RANK": "0"}) == {}
    with pytest.raises(ConfigError, match=r"cannot read SLURM's variables.*srun torchrun"):
        srun_environment({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "8(y2)"})
