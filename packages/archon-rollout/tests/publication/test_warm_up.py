"""Warm-ups of a newcomer from the folder of the version in use, with real servers and planted faults."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest
from sending import TRANSPORTS, assert_equal

from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ConfigError
from archon_core.serving.record import ServerCapabilities, ServerRecord
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.publication.stored import stored_versions
from archon_rollout.publication.warm_up import Warmer

CANARY = Canary((1, 2, 3), n_tokens=4)


class Run:
    """Publishes to one server; the other one is a newcomer."""

    def __init__(self, engine, driver, context, servers, transport, **options) -> None:
        context = replace(context, bucket_bytes=2**17)
        made = TRANSPORTS[transport].load()(context)
        config = RolloutConfig(weight_transport=transport, newcomer_weights="disk")
        self.stored = stored_versions(config, context, made)
        self.engine, self.driver = engine, driver
        self.server, self.newcomer = servers
        publishing = PublisherOptions(bucket_bytes=2**17, timeout=20.0, canary=CANARY, **options)
        self.publisher = Publisher(engine, driver, made, publishing, self.stored)
        self.warmer = Warmer(driver, self.stored, CANARY, timeout=20.0, publisher=context.run)
        self.run = context.run
        self.folder = context.folder / "weights"

    def publish(self, *servers) -> None:
        self.engine.step()
        assert self.publisher.publish(servers or (self.server,)).failed == ()

    def warm_up(self, **fault):
        self.driver.call(self.newcomer, "fault", fault)
        return self.warmer.warm_up(self.newcomer)


@pytest.fixture
def start(engine, driver, context, servers):
    made = []

    def start(transport="disk", **options) -> Run:
        made.append(Run(engine, driver, context, servers, transport, **options))
        return made[-1]

    yield start
    for run in made:
        run.publisher.close()


@pytest.mark.parametrize("transport", ["disk", "shm", pytest.param("distributed", marks=pytest.mark.wide)])
@pytest.mark.parametrize("skip_unchanged", [False, True], ids=["all", "changed only"])
def test_a_newcomer_holds_the_bits_that_the_others_got(start, transport, skip_unchanged, weights_of):
    run = start(transport, skip_unchanged=skip_unchanged)
    assert run.warmer.version is None
    for _ in range(3):
        run.publish()
    assert run.warm_up() == run.warmer.warm_up(run.newcomer), "also twice"
    assert (run.warm_up().version, run.warm_up().error) == (3, "")
    assert_equal(weights_of(run.newcomer), run.engine.tensors)
    assert run.driver.state(run.newcomer, timeout=5).version == 3
    assert sorted(path.name for path in run.folder.iterdir()) == ["v2", "v3"]
    run.publish(run.server, run.newcomer)
    assert_equal(weights_of(run.newcomer), run.engine.tensors)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"drop": "layers.0.up"}, "missing or have other values than were sent"),
        ({"swap": ["layers.0.up", "layers.0.down"]}, "missing or have other values than were sent"),
        ({"flip": "norm"}, "missing or have other values than were sent"),
        ({"honest": False, "drop": "norm"}, "it has other weights, or computes differently"),
        ({"keep_old": "quietly"}, "it answered that it switched, but it is at version"),
        ({"keep_old": "and say new"}, "it has other weights, or computes differently"),
        ({"label_off_by": 1}, "but it is at version"),
        ({"token_off_by": -1}, "its tokens carry version"),
    ],
    ids=["dropped", "swapped", "bit flip", "repeats checksums", "keeps old", "lies", "wrong label", "wrong tokens"],
)
def test_a_newcomer_that_has_not_the_weights_is_found(start, fault, text):
    run = start("shm")
    run.publish(run.server, run.newcomer)
    run.publish()
    result = run.warm_up(**fault)
    assert text in result.error
    assert result.confirmed


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (spoil, "it has other values of"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot read it"),
        (lambda path: path.unlink(), "cannot read it"),
        (lambda path: shutil.rmtree(path.parent), "found no folder"),
    ],
    ids=["bit flip", "truncated", "no file", "no folder"],
)
def test_a_damaged_folder_reaches_no_server(start, damage, text, weights_of):
    run = start()
    run.publish(run.server, run.newcomer)
    old = {name: tensor.clone() for name, tensor in run.engine.tensors.items()}
    run.publish()
    damage(sorted((run.folder / "v2").glob("*.safetensors"))[-1])
    assert text in run.warm_up().error
    assert run.driver.state(run.newcomer, timeout=5).updating is None
    assert_equal(weights_of(run.newcomer), old)


def test_a_newcomer_that_is_late_is_an_error_and_refuses_what_it_executes_later(start, weights_of):
    run = start()
    run.publish(run.server, run.newcomer)
    old = {name: tensor.clone() for name, tensor in run.engine.tensors.items()}
    run.publish()
    run.warmer = Warmer(run.driver, run.stored, CANARY, timeout=0.4, publisher=run.run)
    assert "commit: no answer within 0.4 s" in run.warm_up(delay=["commit", 1.0]).error
    while not any("found prepared version None" in entry for entry in run.driver.call(run.newcomer, "history")):
        time.sleep(0.05)
    assert_equal(weights_of(run.newcomer), old)


@pytest.mark.wide
def test_a_newcomer_that_dies_or_hangs_is_an_error_within_the_limits_of_its_calls(start, own_servers):
    run = start()
    run.publish()
    faults = (({"die_at": 1}, "receive: "), ({"stop_at": 1}, "receive: no answer within 0.5 s"))
    for (_, server), (fault, text) in zip(own_servers(2), faults, strict=True):
        run.newcomer = server
        run.warmer = Warmer(run.driver, run.stored, CANARY, timeout=0.5, publisher=run.run)
        assert text in run.warm_up(**fault).error
    run.publish()


def test_another_incarnation_on_the_address_is_refused(start):
    run = start()
    run.publish()
    run.newcomer = ServerRecord(run.newcomer.address, "earlier", "test")
    assert "this server is" in run.warm_up().error


def test_a_completion_that_the_trainer_has_not_seen_confirms_nothing(start):
    run = start()
    run.publish()
    run.stored.current = replace(run.stored.current, answers={(7, 7, 7, 7): (0.0,) * 4})
    result = run.warm_up()
    assert not result.confirmed
    assert "other tokens than the servers of the last publication" in result.error


def test_a_folder_that_cannot_be_written_costs_newcomers_only(start, caplog):
    run = start("shm")
    run.folder.rmdir() if run.folder.exists() else None
    run.folder.write_text("in the way")
    run.publish()
    assert run.warmer.version is None
    assert "newcomers wait for the next publication: weights on disk: cannot write below" in caplog.text
    assert not run.warm_up().confirmed
    run.folder.unlink()
    run.publish()
    assert (run.warmer.version, run.warm_up().error) == (2, "")


def test_newcomers_join_with_publications_unless_a_folder_is_written_anyway_or_asked_for(context):
    def choose(transport, newcomers, **changes):
        changed = replace(context, **changes)
        config = RolloutConfig(weight_transport=transport, newcomer_weights=newcomers)
        return stored_versions(config, changed, TRANSPORTS[transport].load()(context))

    assert choose("shm", None) is None
    assert choose("shm", "publication") is None
    assert choose("disk", "publication") is None
    assert choose("disk", None) is not None
    with pytest.raises(ConfigError, match=r"rollout\.newcomer_weights: found disk, and no folder for the run"):
        choose("shm", "disk", folder=None)

    class OneWay:
        capabilities = ServerCapabilities(("shm",), ("keep",))

    with pytest.raises(ConfigError, match="found disk, and servers that receive by shm only; allowed is publication"):
        choose("shm", "disk", driver=OneWay())
