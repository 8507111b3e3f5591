"""Changes of the servers as the trainer's loop sees them, under the names of AReaL's elastic weight updates.

Rank 0 knows the servers; every method gives all ranks the same answer, so they enter the same collectives.
"""

from __future__ import annotations

import logging

from archon_core.ranks.ranks import Ranks
from archon_rollout.pool.members import TopologyDecision
from archon_rollout.pool.pool import Pool
from archon_rollout.publication.publisher import Publisher

logger = logging.getLogger(__name__)


class ElasticHooks:
    """Part of an engine with servers. Every method is collective.

    Attributes:
        topology: the servers in service, the same on every rank.
    """

    topology: TopologyDecision
    _ranks: Ranks
    _pool: Pool | None
    _publisher: Publisher | None

    @property
    def target_server_addresses(self) -> list[str]:
        """Addresses of the servers in service, which receive weights. The same on every rank, and not collective."""
        return [record.address for record in self.topology.members.values()]

    def get_last_topology_change_time(self) -> float | None:
        """Time at which servers last joined or left, by rank 0's monotonic clock; ``None`` before the first."""
        return self._ranks.broadcast(None if self._pool is None else self._pool.get_last_topology_change_time())

    def consume_group_rebuild_request(self) -> bool:
        """Whether servers left, or may join, since the last call; see ``Pool.consume_group_rebuild_request``."""
        return self._ranks.broadcast(self._pool is not None and self._pool.consume_group_rebuild_request())

    def maybe_rebuild_weight_update_group(self) -> bool:
        """Leave the process groups of the last publication if the servers have changed; the next one builds others, in
        a new epoch. ``update_weights`` calls it, when no bucket is pending.

        Returns:
            Whether they have changed.
        """
        changed = self.consume_group_rebuild_request()
        if changed and self._publisher is not None:
            self._publisher.leave_groups()
        return changed
