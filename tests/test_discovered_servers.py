"""Servers that announce themselves: they join a running trainer, leave it, and survive an unreadable registry."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import NameResolveConfig
from archon_core.serving.discovery import Discovery
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.member_sources import MemberSources
from archon_rollout.registries.announcer import Announcer
from archon_rollout.registries.run_place import PlaceOptions, find_run
from archon_rollout.served.engine import ServedEngine
from archon_rollout.served.model_files import write_architecture
from archon_testing.fork_server import ForkedProcess, ForkServer
from archon_train.experiment import ExperimentConfig

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "archon-etcd" / "tests"))

from etcd_process import MISSING, Etcd

from served_model import compare_with_local, make_trainer, train_step

QUICK = {
    "health_check_interval_seconds": 0.2,
    "health_check_timeout_seconds": 30.0,
    "topology_change_cooldown_seconds": 0.0,
    "setup_timeout": 60.0,
}


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


class World:
    """A run folder, a trainer's engine on announced servers, and servers as processes."""

    def __init__(self, root: Path, forks: ForkServer, **options) -> None:
        self.forks = forks
        self.run = root / "runs" / "exp" / "trial"
        self.announced = self.run / "servers" / "announced"
        self.trainer = make_trainer()
        model = write_architecture(self.trainer, root / "model")
        self.command = [sys.executable, "-m", "archon_core.cli", "serve", "--model", str(model.folder / "config.json")]
        self.command += ["--dtype", model.dtype, "--run-as", model.model_spec]
        self.command += ["--announce", str(self.run), "--announce-ttl", "2"]
        self.processes: list[ForkedProcess] = []
        config = RolloutConfig(backend="served:d1", start_servers=False, **QUICK, **options)
        section = NameResolveConfig(nfs_record_root=str(root / "runs"))
        self.open = lambda: ServedEngine(
            config, trainer=self.trainer, folder=self.run / "servers", discovery=Discovery(section, "exp/trial")
        )

    def start(self, *options: str) -> ForkedProcess:
        with (self.run.parents[2] / f"{len(self.processes)}.log").open("wb") as log:
            process = self.forks.popen([*self.command, *options], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def log(self, number: int) -> str:
        return (self.run.parents[2] / f"{number}.log").read_text(encoding="utf-8")

    def members(self) -> set[str]:
        """Addresses that announce themselves."""
        files = list(self.announced.glob("*.server.json"))
        return {json.loads(file.read_text(encoding="utf-8"))["record"]["address"] for file in files}

    def step(self, engine: ServedEngine) -> set[str]:
        train_step(self.trainer)
        engine.update_weights(self.trainer.version)
        return set(engine.target_server_addresses)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def world(tmp_path, monkeypatch, forks):
    monkeypatch.delenv("ARCHON_SERVER_TOKEN", raising=False)
    made = World(tmp_path, forks)
    yield made
    made.close()


def shown(world: World, capsys) -> tuple[int, dict]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["servers", str(world.run), "--json"])
    return ended.value.code or 0, json.loads(capsys.readouterr().out)


def pool_states(world: World, capsys) -> list[str]:
    return [row["pool"] for row in shown(world, capsys)[1]["servers"]]


@pytest.mark.wide
def test_servers_join_a_running_trainer_leave_it_and_outlive_the_registry(world, capsys):
    first = world.start()
    engine = world.open()
    try:
        engine.update_weights(world.trainer.version)
        [address] = engine.target_server_addresses
        assert world.members() == {address}
        compare_with_local(engine, world.trainer)

        second = world.start()
        wait_until(lambda: len(world.members()) == 2)
        # A publication leaves out a server that is just being given the version before.
        wait_until(lambda: pool_states(world, capsys) == ["active", "active"])
        assert world.step(engine) == world.members()
        compare_with_local(engine, world.trainer)
        wait_until(lambda: pool_states(world, capsys) == ["active", "active"])  # the status file comes a moment later
        code, view = shown(world, capsys)
        assert code == 0
        assert {row["version"] for row in view["servers"]} == {1}
        assert any(row["tokens_per_second"] for row in view["servers"])

        # Unreadable: servers cannot refresh, the trainer cannot read, and nothing changes.
        world.announced.rename(world.announced.with_name("aside"))
        world.announced.write_text("in the way")
        (world.announced.with_name("aside") / "x.server.json").touch()
        wait_until(lambda: "cannot announce this server, trying again" in world.log(0))
        wait_until(lambda: engine._pool.status().registry_error)
        assert len(world.step(engine)) == 2
        world.announced.unlink()
        wait_until(lambda: len(world.members()) == 2)
        assert world.log(0).count("cannot announce") == 1

        # SIGTERM withdraws at once.
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
        assert "withdrawn from" in world.log(0)
        [left] = world.members()
        wait_until(lambda: len(engine._pool.decide().members) == 1)
        assert world.step(engine) == {left}

        # SIGKILL, and another incarnation on the same port: it takes over the entry.
        [killed] = engine.topology.members
        second.kill()
        second.wait()
        third = world.start("--port", left.rpartition(":")[2])
        wait_until(lambda: "announced in" in world.log(2))
        assert world.step(engine) == {left}
        assert killed not in engine.topology.members
        compare_with_local(engine, world.trainer)

        # SIGKILL without a successor: the entry expires.
        [killed] = engine.topology.members
        third.kill()
        third.wait()
        assert shown(world, capsys)[0] == 1
        wait_until(lambda: not engine._pool.status().members[killed].announced)
        assert not engine._pool.decide().members
    finally:
        engine.close()


@pytest.mark.wide
@pytest.mark.parametrize("transport", ["disk", "shm"])
def test_a_newcomer_gets_requests_without_a_publication(tmp_path, monkeypatch, forks, transport):
    monkeypatch.delenv("ARCHON_SERVER_TOKEN", raising=False)
    world = World(tmp_path, forks, weight_transport=transport, newcomer_weights="disk")
    first = world.start()
    engine = world.open()
    try:
        world.step(engine)
        published = engine.last_publication
        world.start()
        wait_until(lambda: sum(one.state == "active" for one in engine._pool.status().members.values()) == 2)
        first.kill()
        first.wait()
        compare_with_local(engine, world.trainer)  # the newcomer's tokens, within 1e-5 of the trainer's
        assert engine.last_publication is published, "there was no other publication"
        assert "version -1 -> 1" in world.log(1)
    finally:
        engine.close()
        world.close()


def test_servers_read_the_same_defaults_as_trainers():
    for name in ("experiment_name", "trial_name"):
        assert getattr(PlaceOptions(), name) == getattr(ExperimentConfig(), name)
    assert PlaceOptions().rollout.backend == ExperimentConfig().rollout.backend
    assert PlaceOptions().cluster.fileroot == ExperimentConfig().cluster.fileroot


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_servers_announce_themselves_in_etcd_and_outlive_its_restart(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    etcd = Etcd(tmp_path / "data")
    example = str(Path(__file__).parents[1] / "examples" / "grpo_arithmetic.yaml")
    options = ["cluster.name_resolve.type=etcd3", f"cluster.name_resolve.etcd3_addr={etcd.address}", "trial_name=x"]
    record = ServerRecord("127.0.0.1:1", "aaaa", "served")
    place = find_run(Path(example), options)
    announcer = Announcer(place.discovery.open(), lambda: record, ttl=1.0, place=place.described, first_retry=0.05)
    sources = MemberSources([place.discovery.open()])
    announcer.start()
    try:
        wait_until(lambda: sources.read().records == (record,))
        with pytest.raises(SystemExit) as ended:
            main(["servers", example, *options])
        assert ended.value.code == 1, "nobody answers there"
        assert "run arithmetic/x, registry etcd3: 1 server\n" in capsys.readouterr().out
        etcd.stop()
        wait_until(lambda: "cannot connect; start etcd there" in sources.read().error)
        assert sources.read().records == (record,)
        etcd.start()
        wait_until(lambda: not sources.read().error)
        wait_until(lambda: place.discovery.open().list())
        announcer.stop()
        announcer.join(30)
        assert place.discovery.open().list() == {}
    finally:
        announcer.stop()
        etcd.stop()
