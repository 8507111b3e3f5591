"""Servers that die during a run: their requests move to others, and a replacement gets the weights before it serves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import NameResolveConfig
from archon_core.errors import ServerError, TrainingError
from archon_core.serving.discovery import Discovery
from archon_rollout.served.engine import ServedEngine
from archon_rollout.served.launching import ServerProcesses

sys.path.insert(0, str(Path(__file__).parent))

from served_model import compare_with_local, make_trainer, requests, train_step

pytestmark = [pytest.mark.wide, pytest.mark.usefixtures("by_forks")]

QUICK = {
    "health_check_interval_seconds": 0.2,
    "health_check_timeout_seconds": 30.0,
    "topology_change_cooldown_seconds": 0.0,
}


def kill(processes: ServerProcesses, index: int) -> None:
    process = processes._processes[index].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_goes_on_as_long_as_a_server_lives_and_when_another_one_comes(tmp_path, monkeypatch):
    trainer = make_trainer()
    config = RolloutConfig(backend="served:d2", **QUICK)
    discovery = Discovery(NameResolveConfig(nfs_record_root=str(tmp_path)), "e/t")
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path / "servers", discovery=discovery)
    others = ServerProcesses(
        engine._driver,
        engine._processes._layout,
        model=engine._processes._model,
        folder=tmp_path / "others",
    )
    try:
        engine.update_weights(trainer.version)
        first, second = engine.topology.members
        kill(engine._processes, 0)
        compare_with_local(engine, trainer)

        train_step(trainer)
        engine.update_weights(trainer.version)
        assert list(engine.topology.members) == [second]
        assert engine.topology.evicted == (first,)
        compare_with_local(engine, trainer)

        # A registry may list further servers: the run goes on when all servers that it started have died.
        monkeypatch.setattr(engine._processes, "check", lambda: None)
        new = others.start(timeout=120)
        kill(engine._processes, 1)

        def announce_later() -> None:
            time.sleep(2)
            for record in new:
                discovery.open().announce(record.incarnation, record, ttl=600)

        thread = threading.Thread(target=announce_later)
        thread.start()
        compare_with_local(engine, trainer)
        thread.join()
        assert set(engine.topology.members) <= {record.incarnation for record in new}
        train_step(trainer)
        engine.update_weights(trainer.version)
        assert set(engine.topology.members) == {record.incarnation for record in new}
        compare_with_local(engine, trainer)
    finally:
        engine.close()
        others.stop()


def test_a_run_without_servers_ends_with_an_error_that_says_who_left(tmp_path, monkeypatch):
    trainer = make_trainer()
    config = RolloutConfig(backend="served:d1", setup_timeout=60.0, **QUICK)
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path / "servers")
    try:
        engine.update_weights(trainer.version)
        [server] = engine.topology.members.values()
        kill(engine._processes, 0)
        with pytest.raises(ServerError, match=r"(?s)^server 0 ended with code -9; the end of its log"):
            engine.generate(requests())
        monkeypatch.setattr(engine._processes, "check", lambda: None)
        engine._config.setup_timeout = 3.0
        with pytest.raises(TrainingError, match=rf"(?s)found 0 after 3 s.*{server.address} is out: .*cannot connect"):
            engine.generate(requests())
    finally:
        engine.close()
