"""AReaL's names for changes of the servers: joining, cooldown, delayed rebuild, removal, and pending buckets first."""

from __future__ import annotations

import pytest
from test_pool import World

from archon_core.ranks.ranks import DataRanks
from archon_rollout.served.elastic_hooks import ElasticHooks

COOLDOWN = 30.0


class Publisher:
    """Counts the times at which groups were left."""

    rebuilds = 0

    def leave_groups(self) -> None:
        self.rebuilds += 1


class Engine(ElasticHooks):
    """An engine of one rank with a pool that is refreshed by hand."""

    def __init__(self, names: str) -> None:
        self.world = World(names, topology_change_cooldown_seconds=COOLDOWN)
        self._pool, self._publisher = self.world.pool, Publisher()
        self._ranks = DataRanks().everyone
        self.topology = self._pool.decide()
        self.world.refresh()
        self.publish()

    def publish(self) -> None:
        self.maybe_rebuild_weight_update_group()
        self.world.publish()
        self.topology = self._pool.decide()

    def changes(self, *, at: float) -> bool:
        """Whether a refresh at a time leads to other groups."""
        before = self._publisher.rebuilds
        self.world.refresh(at=at)
        changed = self.maybe_rebuild_weight_update_group()
        assert self._publisher.rebuilds - before == changed
        return changed

    def addresses(self, names: str) -> list[str]:
        return [self.world.driver.servers[name].record.address for name in names]


@pytest.fixture
def engine() -> Engine:
    return Engine("ab")


def test_the_first_servers_join_and_nothing_changes_afterwards(engine: Engine) -> None:
    assert engine._publisher.rebuilds == 1
    assert engine.target_server_addresses == engine.addresses("ab")
    assert engine.get_last_topology_change_time() == 0.0
    assert not engine.changes(at=COOLDOWN + 1)
    assert not engine.consume_group_rebuild_request()


def test_a_newcomer_is_taken_in_once_after_the_cooldown(engine: Engine) -> None:
    engine.world.start("c")
    assert not engine.changes(at=COOLDOWN - 1), "the rebuild is delayed"
    assert engine.changes(at=COOLDOWN + 1)
    assert not engine.maybe_rebuild_weight_update_group(), "the request is consumed"
    assert engine.target_server_addresses == engine.addresses("ab"), "it has no weights yet"
    engine.publish()
    assert engine.target_server_addresses == engine.addresses("abc")
    assert engine.get_last_topology_change_time() == COOLDOWN + 1
    engine.world.start("d")
    assert not engine.changes(at=2 * COOLDOWN), "the cooldown begins anew with every change"
    assert engine.changes(at=2 * COOLDOWN + 2)


def test_an_unhealthy_server_is_removed_at_once(engine: Engine) -> None:
    engine.world.driver.servers["a"].hangs = True
    assert not engine.changes(at=1.0), "one failed probe makes it suspect; it still gets weights"
    assert engine.changes(at=2.0)
    engine.topology = engine._pool.decide()
    assert engine.target_server_addresses == engine.addresses("b")
    assert engine.get_last_topology_change_time() == 2.0


def test_several_changes_in_the_cooldown_are_one_rebuild(engine: Engine) -> None:
    engine.world.driver.servers["a"].hangs = True
    engine.world.start("c")
    engine.world.start("d")
    assert engine.changes(at=1.0) is False
    engine.world.refresh(at=2.0)
    assert engine.maybe_rebuild_weight_update_group(), "the dead leave without a cooldown"
    assert not engine.changes(at=COOLDOWN + 1)
    for name in "ac":
        engine.world.announcements[name].withdraw()
    assert engine.changes(at=COOLDOWN + 3)
    engine.publish()
    assert engine.target_server_addresses == engine.addresses("bd")
