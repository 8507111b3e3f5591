"""Commits and plans that arrive late, and those of other publishers."""

import pytest

from archon_core.errors import ServerError
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import UpdatePlan


class NoReceiver:
    """Receives nothing."""

    def begin(self, plan):
        pass

    def end(self):
        pass


def test_a_late_commit_changes_nothing_and_an_update_to_the_same_version_must_be_verified_first():
    updates = WeightUpdates(MemoryStore(), incarnation="a", version=1, receiver_of=lambda name: NoReceiver())

    def begin(version):
        updates.begin(UpdatePlan(WeightManifest(version, ()), "none", {}, "a"))

    begin(2)
    updates.commit(1)
    assert (updates.version, updates.updating) == (1, 2), "the commit of version 1 was executed long ago"
    with pytest.raises(ServerError, match="commit of version 2: found prepared version None, in use 1"):
        updates.commit(2)
    begin(1)
    with pytest.raises(ServerError, match="commit of version 1: found prepared version None, in use 1"):
        updates.commit(1)
    updates.verify(WeightManifest(1, ()))
    updates.commit(1)
    assert (updates.version, updates.updating) == (1, None)


def test_versions_of_one_publisher_rise_and_another_one_may_start_lower():
    updates = WeightUpdates(MemoryStore(), incarnation="a", version=7, receiver_of=lambda name: NoReceiver())

    def begin(version, publisher):
        updates.begin(UpdatePlan(WeightManifest(version, ()), "none", {}, "a", publisher))

    def publish(version, publisher):
        begin(version, publisher)
        updates.verify(WeightManifest(version, ()))
        updates.commit(version)

    publish(40, "first run")
    publish(38, "resumed from a checkpoint")
    assert updates.version == 38
    begin(39, "resumed from a checkpoint")
    for version, publisher in ((39, "first run"), (37, "resumed from a checkpoint")):
        with pytest.raises(ServerError, match=rf"found version {version}; allowed is .*, the last version of this pub"):
            begin(version, publisher)
        assert updates.updating == 39, "a late plan drops nothing"
    publish(0, "another run")
    publish(0, "another run")
    assert updates.version == 0
