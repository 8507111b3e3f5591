"""Groups: bytes arrive in messages, and a missing or departed member is an error within the time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from archon_core.errors import ServerError, TransferError
from archon_core.ranks.network_interface import CHOSEN, GLOO
from archon_core.receiving.elastic_group import SENDER, GroupSetup, join_as, join_group, receive, send
from archon_rollout.transports import store_process
from archon_rollout.transports.distributed import address_towards
from archon_rollout.transports.store_process import StoreProcess


def join_all(store, prefix, size=2):
    with ThreadPoolExecutor(size) as pool:
        joining = [
            pool.submit(join_group, "127.0.0.1", store.port, prefix, rank, timeout=20, size=size)
            for rank in range(size)
        ]
        return [member.result() for member in joining]


@pytest.mark.parametrize("n_receivers", [1, 3])
def test_bytes_arrive_message_by_message_and_groups_are_independent(n_receivers, store):
    content = torch.randint(0, 256, (2500,), dtype=torch.uint8)
    options = {"timeout": 20, "broadcast": n_receivers > 1, "message_bytes": 1000}

    def take(receiver):
        found, arrived = torch.zeros_like(content), []
        for n_bytes in receive(receiver, found, **options):
            assert torch.equal(found[:n_bytes], content[:n_bytes])
            arrived.append(n_bytes)
        return arrived

    for epoch in range(2):
        sender, *receivers = join_all(store, f"weights/{n_receivers}/{epoch}", n_receivers + 1)
        with ThreadPoolExecutor(4) as pool:
            taking = [pool.submit(take, receiver) for receiver in receivers]
            pool.submit(send, sender, content, **options).result()
            assert [one.result() for one in taking] == [[1000, 2000, 2500]] * n_receivers


def test_a_group_uses_the_address_towards_its_peer_unless_the_user_chose_an_interface(store, monkeypatch):
    monkeypatch.setenv(GLOO, "other0")
    monkeypatch.setenv(CHOSEN, "other0")  # by Archon, for the ranks: it may lead elsewhere than to this peer
    sender, receiver = join_all(store, "weights/address")
    content, found = torch.arange(10, dtype=torch.uint8), torch.zeros(10, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(send, sender, content, timeout=20)
        list(receive(receiver, found, timeout=20))
    assert torch.equal(found, content)
    monkeypatch.delenv(CHOSEN)
    with pytest.raises(ServerError, match="other0"):
        join_all(store, "weights/interface")


def test_only_the_runs_are_sent_and_the_gaps_keep_what_they_had(store):
    content, found = torch.arange(100, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)
    sender, receiver = join_all(store, "weights/runs")
    options = {"timeout": 20, "runs": ((10, 40), (64, 70)), "message_bytes": 16}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(send, sender, content, **options)
        assert list(receive(receiver, found, **options)) == [26, 40, 70]
    sent = (content >= 10) & (content < 40) | (content >= 64) & (content < 70)
    assert torch.equal(found, content * sent)


def test_a_setup_travels_as_json_and_an_unknown_backend_is_refused():
    setup = GroupSetup("127.0.0.1", 1, "weights/json", 1.0, rank=2, size=3, broadcast=True)
    assert GroupSetup.from_data(setup.as_data()) == setup
    with pytest.raises(ServerError, match=r"found backend 'mpi', rank 2 of 3.*allowed backends are gloo, nccl"):
        GroupSetup.from_data({**setup.as_data(), "backend": "mpi"})
    with pytest.raises(ServerError, match="rank 3 of 3"):
        GroupSetup.from_data({**setup.as_data(), "rank": 3})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_nccl_without_a_gpu_is_an_error_of_the_member(store):
    setup = GroupSetup("127.0.0.1", store.port, "weights/nccl", 5.0, backend="nccl", broadcast=True)
    with pytest.raises(ServerError, match="NCCL"):
        join_as(setup, SENDER)


def test_a_member_that_never_arrives_is_an_error_that_names_it(store):
    with pytest.raises(ServerError, match=r"group weights/alone: rank 0 of 2 could not join .*rank 1 did not arrive"):
        join_group("127.0.0.1", store.port, "weights/alone", SENDER, timeout=0.2)


def test_a_store_that_closes_ends_the_wait_for_members_without_a_trace_also_after_ctrl_c(capfd):
    store = StoreProcess()
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(join_group, "127.0.0.1", store.port, "weights/closing", SENDER, timeout=60)
        client = dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        client.wait(["weights/closing/arrived/0"])
        process = store._process
        assert os.getpgid(process.pid) == process.pid, "a terminal sends Ctrl-C to the trainer's process group"
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        del client
        store.close()
        with pytest.raises(ServerError, match="the trainer has closed the store"):
            joining.result()
    assert capfd.readouterr().err == ""


STARTS_A_STORE = """
import os, sys, time
from archon_rollout.transports.store_process import StoreProcess
store = StoreProcess()
store.port
holder = os.fork()
if holder == 0:
    time.sleep(60)
print(store._process.pid, holder, flush=True)
time.sleep(60)
"""


@pytest.mark.wide
def test_a_store_ends_with_a_killed_trainer_although_another_child_holds_its_pipe():
    trainer = subprocess.Popen([sys.executable, "-c", STARTS_A_STORE], stdout=subprocess.PIPE, text=True)
    store, holder = map(int, trainer.stdout.readline().split())
    try:
        trainer.kill()
        trainer.wait()
        end = time.monotonic() + 30
        while is_running(store):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(holder, signal.SIGKILL)
        trainer.stdout.close()


def is_running(process):
    """Whether a process exists and has not ended; without an init process, nobody takes note of an orphan's end."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_a_store_that_does_not_start_is_an_error_after_the_time_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(store_process, "START_SECONDS", 0.2)
    monkeypatch.setattr(store_process.sys, "executable", "/bin/cat")
    monkeypatch.setattr(store_process, "COMMAND", ())
    with pytest.raises(ServerError, match=r"did not listen within 0.2 s"):
        _ = StoreProcess().port


def test_a_member_that_leaves_is_an_error(store):
    sender, receiver = join_all(store, "weights/left")
    del sender
    with pytest.raises(TransferError, match="cannot receive weights within"):
        list(receive(receiver, torch.zeros(8, dtype=torch.uint8), timeout=5))


def test_the_host_is_given_as_the_server_reaches_it():
    assert address_towards("127.0.0.1:80") == "127.0.0.1"
    with pytest.raises(ServerError, match="no network leads there"):
        address_towards("no-such-host.invalid:80")
