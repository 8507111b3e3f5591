"""Ctrl-C while a run looks for servers: no server that hangs delays it."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

import pytest
from test_pool import World

from archon_core.contracts.rollout import RolloutConfig, ScoredModel
from archon_core.errors import ConfigError, ServerError
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_rollout.pool.pool import Pool
from archon_rollout.pool.stopping import StoppedError, never, results_unless_stopped, try_within
from archon_rollout.served.driver import ServedDriver
from archon_rollout.served.engine import ServedEngine
from archon_rollout.served.finding import missing_servers
from archon_rollout.served.scoring_engine import ScoringServers


@pytest.fixture
def hung():
    """The address of a server that accepts connections and answers nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_hangs_is_missing_after_the_time_limit_and_one_that_refuses_at_once(hung):
    driver = ServedDriver(RolloutConfig())
    assert missing_servers(driver, [hung, "127.0.0.1:1"], timeout=0.1, stop=never) == [hung, "127.0.0.1:1"]


def test_a_registry_that_hangs_does_not_keep_the_run_from_ending(monkeypatch, caplog):
    world, reading, released = World("a"), threading.Event(), threading.Event()

    def hang():
        reading.set()
        released.wait(60)
        return {}

    monkeypatch.setattr(world.registry, "list", hang)
    monkeypatch.setattr(world.registry, "close", hang, raising=False)
    monkeypatch.setattr("archon_rollout.pool.watch.STOP_SECONDS", 0.1)
    pool = Pool(world.registry, world.driver, world.options)
    pool.start()
    assert reading.wait(20)
    watching = pool._watch._thread
    pool.stop()
    assert not released.is_set()
    assert "closing the registry of servers is not over after 0.1 s; the run ends without it" in caplog.messages
    watching.join(20)
    assert not watching.is_alive(), "it waits for the registry"
    released.set()


def test_what_fails_at_the_end_is_logged(caplog):
    def fail():
        raise OSError("stale file handle")

    try_within(20.0, fail, doing="writing")
    assert caplog.messages == ["writing failed: OSError: stale file handle"]


def test_a_stopped_run_does_not_wait_for_a_call_that_hangs():
    hanging = threading.Event()
    with pytest.raises(StoppedError, match="stopped while the run looked for servers"):
        results_unless_stopped([hanging.wait], lambda: True, doing="looked for servers")
    hanging.set()


def test_results_have_the_order_of_the_calls_and_the_first_error_is_raised():
    def fail() -> int:
        raise ServerError("found another token")

    assert results_unless_stopped([lambda: 1, lambda: 2], never, doing="") == [1, 2]
    with pytest.raises(ServerError, match="another token"):
        results_unless_stopped([lambda: 1, fail], never, doing="")


def test_ctrl_c_ends_the_start_on_addresses_that_hang(hung, tmp_path):
    config = RolloutConfig(backend="served:d1", addresses=[hung], setup_timeout=1000.0)
    trainer = SimpleNamespace(data_ranks=DataRanks(), version=0)
    with pytest.raises(KeyboardInterrupt, match=f"stopped while the run looked for servers at {hung}"):
        ServedEngine(config, trainer=trainer, folder=tmp_path, stop=lambda: True)
    config.setup_timeout = 0.1
    with pytest.raises(ConfigError, match=rf"rollout\.addresses: found no served server at {hung}; start it"):
        ServedEngine(config, trainer=trainer, folder=tmp_path)


def test_ctrl_c_ends_the_start_of_a_teacher_whose_server_hangs(hung, tmp_path):
    config = RolloutConfig(backend="served:d1", addresses=[hung], health_check_timeout_seconds=1000.0)
    model = ScoredModel(str(tmp_path), vocab_size=10, max_tokens=10)
    options = {"option": "teacher.rollout", "ranks": Ranks(), "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt, match=f"stopped while the run looked for servers at {hung}"):
        ScoringServers(config, model, stop=lambda: True, **options)
