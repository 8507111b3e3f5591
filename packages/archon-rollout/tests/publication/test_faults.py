"""Planted faults: the protocol finds each, names it, and leaves the server with whole old weights or out of service."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from sending import TRANSPORTS, arenas, assert_equal, make_publisher

from archon_core.errors import ServerError
from archon_core.serving.update import UpdatePlan
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher
from archon_rollout.transports.shared_memory import SharedMemoryTransport
from archon_rollout.transports.version_folders import VersionFolders


@pytest.fixture
def publishing(engine, driver, context, servers):
    """Publishes a first version, then the next one with a fault on the first server."""
    made = []

    def publish(fault, transport="shm", **options):
        publisher = make_publisher(engine, driver, context, transport, **{"bucket_bytes": 2**17, **options})
        made.append(publisher)
        engine.step()
        assert publisher.publish(servers).failed == ()
        old = {name: tensor.clone() for name, tensor in engine.tensors.items()}
        if callable(fault):
            fault(publisher)
        else:
            driver.call(servers[0], "fault", fault)
        engine.step()
        return publisher.publish(servers), old

    yield publish
    for publisher in made:
        publisher.close()


def wait_for_entry(driver, server, text):
    """Wait until a server has refused a call with this text."""
    deadline = time.monotonic() + 20
    while not any(text in entry for entry in driver.call(server, "history")):
        assert time.monotonic() < deadline, driver.call(server, "history")[-5:]
        time.sleep(0.05)


def assert_only_first_failed(result, servers, phase, text):
    assert [failed.server for failed in result.failed] == [servers[0]]
    assert result.committed == (servers[1],)
    (failed,) = result.failed
    assert (failed.phase, text in failed.reason) == (phase, True), failed
    return failed


@pytest.mark.parametrize("transport", ["shm", "disk"])
@pytest.mark.parametrize(
    "fault",
    [{"drop": "layers.0.up"}, {"swap": ["layers.0.up", "layers.0.down"]}, {"flip": "norm"}, {"flip": "layers.1.up"}],
    ids=["dropped tensor", "swapped pair", "bit flip", "bit flip in pages"],
)
def test_values_that_a_server_spoils_are_found_by_its_own_checksums(
    fault, transport, publishing, servers, engine, driver, weights_of
):
    result, old = publishing(fault, transport)
    failed = assert_only_first_failed(result, servers, "verify", "missing or have other values than were sent")
    assert failed.state.version == engine.version - 1
    assert_equal(weights_of(servers[0]), old)
    assert_equal(weights_of(servers[1]), engine.tensors)


@pytest.mark.parametrize(
    "fault",
    [{"drop": "layers.0.up"}, {"swap": ["layers.0.up", "layers.0.down"]}],
    ids=["dropped tensor", "swapped pair"],
)
def test_a_server_that_repeats_the_senders_checksums_is_found_by_the_canary(fault, publishing, servers):
    result, _ = publishing({**fault, "honest": False})
    assert_only_first_failed(result, servers, "canary", "")


def test_a_server_that_answers_200_and_keeps_old_weights_is_found_by_its_state(publishing, servers, engine):
    result, _ = publishing({"keep_old": "quietly"})
    text = f"it answered that it switched, but it is at version {engine.version - 1}, not {engine.version}"
    assert_only_first_failed(result, servers, "commit", text)


def test_a_server_that_keeps_old_weights_and_says_they_are_new_is_found_by_the_canary(publishing, servers):
    result, _ = publishing({"keep_old": "and say new"})
    assert_only_first_failed(result, servers, "canary", "it has other weights, or computes differently")


@pytest.mark.parametrize(
    ("fault", "phase", "text"),
    [
        ({"label_off_by": 1}, "commit", "but it is at version 3, not 2"),
        ({"token_off_by": -1}, "canary", "version 1, not 2"),
    ],
    ids=["in its state", "on its tokens"],
)
def test_right_weights_under_a_wrong_version_are_found(fault, phase, text, publishing, servers):
    result, _ = publishing(fault)
    assert_only_first_failed(result, servers, phase, text)


@pytest.mark.parametrize("token", [-1, 50, 2**40])
def test_a_canary_with_token_ids_outside_the_vocabulary_costs_its_server_only(token, publishing, servers):
    canary = Canary((1, 2, 3), n_tokens=4, vocab_size=50)
    result, _ = publishing({"last_token": token}, canary=canary)
    text = f"canary: found token id {token}; allowed are 0 to 49"
    assert_only_first_failed(result, servers, "canary", text)


def test_a_reader_that_wakes_after_its_slot_was_reused_drops_the_update(
    publishing, servers, engine, driver, weights_of
):
    fault = {"sleep_in": "embed", "seconds": 2.5}
    result, old = publishing(fault, bucket_bytes=2**10, timeout=1.0)
    failed = assert_only_first_failed(result, servers, "transfer", "no answer within 1.0 s")
    wait_for_entry(driver, servers[0], "The trainer has reused the slot")
    assert driver.state(servers[0], timeout=5).updating is None
    assert failed.state is None, "it did not answer"
    assert driver.state(servers[0], timeout=5).version == engine.version - 1
    assert_equal(weights_of(servers[0]), old)


def test_a_commit_that_is_executed_late_is_refused(publishing, servers, engine, driver, weights_of):
    result, old = publishing({"delay": ["commit", 2.0]}, timeout=1.0)
    failed = assert_only_first_failed(result, servers, "commit", "commit: no answer within 1.0 s")
    assert failed.state.prepared is None, "the update was aborted, so that the late commit finds nothing"
    wait_for_entry(driver, servers[0], f"commit of version {engine.version}: found prepared version None")
    assert driver.state(servers[0], timeout=5).version == engine.version - 1
    assert_equal(weights_of(servers[0]), old)


class FlippingTransport(SharedMemoryTransport):
    """Changes one bit on the way."""

    def _place(self, bucket, notice):
        place = super()._place(bucket, notice)
        self._slots[place["slot"]][notice.offsets[-1]] ^= 16
        return place


class StaleTransport(SharedMemoryTransport):
    """Announces the slot of an earlier bucket."""

    last = None

    def _place(self, bucket, notice):
        place = super()._place(bucket, notice)
        stale, self.last = self.last or place, place
        return stale


class EmptyTransport(SharedMemoryTransport):
    """Announces a slot whose content is that of an earlier version."""

    def _open_slot(self, index, n_bytes):
        self.kept = self._slots[index % 2].clone()
        return super()._open_slot(index, n_bytes)

    def _place(self, bucket, notice):
        place = super()._place(bucket, notice)
        self._slots[notice.index % 2].copy_(self.kept)
        return place


@pytest.mark.parametrize(
    ("transport", "text"),
    [
        (FlippingTransport, "it has other values of"),
        (StaleTransport, "The trainer has reused the slot"),
        (EmptyTransport, "it has other values of"),
    ],
    ids=["bit flip", "old slot", "old content"],
)
def test_what_goes_wrong_on_the_way_is_found_bucket_by_bucket(
    transport, text, engine, driver, context, servers, weights_of
):
    good = make_publisher(engine, driver, context, "shm")
    engine.step()
    assert good.publish(servers).failed == ()
    options = replace(good._options, bucket_bytes=2**17)
    good.close()
    old = {name: tensor.clone() for name, tensor in engine.tensors.items()}
    publisher = Publisher(engine, driver, transport(replace(context, bucket_bytes=2**17)), options)
    engine.step()
    result = publisher.publish(servers)
    publisher.close()
    assert result.committed == ()
    assert all(failed.phase == "transfer" and text in failed.reason for failed in result.failed), result.failed
    for server in servers:
        assert_equal(weights_of(server), old)


def test_a_pause_that_was_executed_late_is_undone(publishing, servers, driver):
    result, _ = publishing(lambda _: driver.call(servers[0], "pause"))
    assert result.failed == ()
    assert not driver.state(servers[0], timeout=5).paused


def test_calls_of_another_update_are_refused(engine, driver, servers, context):
    plan = UpdatePlan(engine.weight_manifest(), "disk", {"folder": str(context.folder)}, "someone else")
    with pytest.raises(ServerError, match="started later on the same address"):
        driver.begin_update(servers[0], plan, timeout=5)
    with pytest.raises(ServerError, match="found no update in progress"):
        driver.verify_update(servers[0], engine.weight_manifest(), timeout=5)
    with pytest.raises(ServerError, match="only a verified update is committed"):
        driver.commit_update(servers[0], 99, timeout=5)


@pytest.mark.wide
@pytest.mark.parametrize("transport", ["shm", "distributed"])
def test_servers_that_die_and_stop_in_the_middle_leave_and_the_others_go_on(
    transport, engine, driver, context, servers, own_servers, weights_of
):
    (_, killed), (stopped_process, stopped) = own_servers(2)
    publisher = make_publisher(engine, driver, context, transport, bucket_bytes=2**17, timeout=4.0)
    engine.step()
    everyone = [killed, *servers, stopped]
    assert publisher.publish(everyone).failed == ()
    driver.call(killed, "fault", {"die_in": "layers.1.up"})
    driver.call(stopped, "fault", {"stop_in": "layers.1.up"})
    engine.step()
    result = publisher.publish(everyone)
    assert result.committed == tuple(servers)
    assert {(failed.server, failed.phase) for failed in result.failed} == {(killed, "transfer"), (stopped, "transfer")}
    for server in servers:
        assert_equal(weights_of(server), engine.tensors)
    os.kill(stopped_process.pid, signal.SIGCONT)
    engine.step()
    results = (publisher.publish([*servers, stopped]) for _ in range(5))
    assert any(result.failed == () for result in results)
    assert_equal(weights_of(stopped), engine.tensors)
    publisher.close()


@pytest.mark.wide
@pytest.mark.parametrize("transport", ["shm", "distributed"])
def test_killed_and_stopped_servers_leave_and_the_others_go_on(
    transport, engine, driver, context, servers, own_servers, weights_of
):
    (killed, killed_record), (stopped, stopped_record) = own_servers(2)
    publisher = make_publisher(engine, driver, context, transport, timeout=4.0)
    engine.step()
    everyone = [killed_record, *servers, stopped_record]
    assert publisher.publish(everyone).failed == ()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    os.kill(stopped.pid, signal.SIGSTOP)
    engine.step()
    result = publisher.publish(everyone)
    assert result.committed == tuple(servers)
    assert {failed.server for failed in result.failed} == {killed_record, stopped_record}
    assert all(failed.state is None for failed in result.failed)
    assert_equal(weights_of(servers[0]), engine.tensors)
    os.kill(stopped.pid, signal.SIGCONT)
    # It first executes the call that nobody waits for any more, which may take until its own time limit.
    results = (publisher.publish([*servers, stopped_record]) for _ in range(5))
    assert any(result.failed == () for result in results)
    assert_equal(weights_of(stopped_record), engine.tensors)
    publisher.close()
    assert arenas(context.run) == []


def test_a_full_shared_memory_fails_all_servers_with_the_fix(engine, driver, context, servers, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    publisher = make_publisher(engine, driver, context, "shm")
    engine.step()
    result = publisher.publish(servers)
    assert result.committed == ()
    assert all("lower rollout.weight_bucket_mb" in failed.reason for failed in result.failed)
    publisher.close()
    assert arenas(context.run) == []


def test_the_disk_transport_leaves_whole_folders_only(publishing, context, servers, engine):
    from safetensors import safe_open

    result, _ = publishing({"flip": "norm"}, "disk")
    assert len(result.committed) == 1
    folders = sorted(path.name for path in (context.folder / "weights").iterdir())
    assert folders == ["v1", "v2"]
    found = {}
    for file in (context.folder / "weights" / "v2").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    assert_equal(found, engine.tensors)
    assert TRANSPORTS["disk"].load()(context).folder_of(2).is_dir()
    assert torch.equal(found["scalar"], engine.tensors["scalar"])


def test_a_resumed_run_keeps_the_folder_before_its_version_not_those_of_steps_that_it_repeats(tmp_path):
    for version in (3, 4, 6, 7):
        (tmp_path / f"v{version}").mkdir()
    folders = VersionFolders(tmp_path, bucket_bytes=2**20)
    folders.folder_of(5).mkdir()
    folders.prune(5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v4", "v5"]


def test_an_old_folder_that_cannot_be_removed_is_a_warning(engine, driver, context, servers, monkeypatch, caplog):
    def refuse(folder):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("archon_rollout.transports.version_folders.remove_folder", refuse)
    publisher = make_publisher(engine, driver, context, "disk")
    for _ in range(3):
        engine.step()
        assert publisher.publish(servers).failed == ()
    publisher.close()
    assert "cannot remove the weights of version 1" in caplog.text


@pytest.mark.wide
def test_a_store_that_ended_is_replaced(engine, driver, context, servers, weights_of):
    publisher = make_publisher(engine, driver, context, "distributed")
    engine.step()
    assert publisher.publish(servers).failed == ()
    store = publisher._transport._store._process
    store.kill()
    store.wait()
    engine.step()
    assert publisher.publish(servers).failed == ()
    assert_equal(weights_of(servers[0]), engine.tensors)
    publisher.close()
