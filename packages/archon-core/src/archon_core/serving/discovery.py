"""Where the inference servers of a run are listed: chooses and creates the registry that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archon_core.contracts.server_registry import ServerRegistry, ServerRegistrySpec
from archon_core.errors import ConfigError

OPTION = "cluster.name_resolve.type"


@dataclass(frozen=True)
class Discovery:
    """The registry of one run.

    Attributes:
        config: the section ``cluster.name_resolve``.
        run: ``<experiment_name>/<trial_name>``.
        addresses: ``rollout.addresses``.
    """

    config: Any
    run: str
    addresses: Sequence[str] = field(default=())

    @classmethod
    def of(cls, config: Any) -> Discovery:
        """The registry that the configuration of a run names."""
        cluster = config.cluster
        root = cluster.name_resolve.nfs_record_root or cluster.fileroot
        section = replace(cluster.name_resolve, nfs_record_root=root)
        return cls(section, f"{config.experiment_name}/{config.trial_name}", tuple(config.rollout.addresses))

    @property
    def spec(self) -> ServerRegistrySpec:
        """The registry's spec.

        Raises:
            UnknownNameError: no installed package provides it.
        """
        from archon_core.plugins import registry

        return registry().get(ServerRegistrySpec, self.config.type)

    def open(self) -> ServerRegistry:
        """Create the registry. Raises as ``spec``, and ConfigError for invalid options."""
        opened: ServerRegistry = self.spec.load()(self.config, run=self.run, addresses=self.addresses)
        return opened

    def check_announcing(self) -> None:
        """Raise ConfigError if servers cannot announce themselves in the registry."""
        if self.spec.entries != "announced":
            raise ConfigError(
                f"{OPTION}: found {self.config.type!r}, in which servers cannot announce themselves; use folder or "
                "etcd, or start the server without --announce and add it to rollout.addresses"
            )
