"""Where the inference servers of a run are listed: chooses and creates the registry that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from archon_core.contracts.server_registry import ServerRegistry, ServerRegistrySpec
from archon_core.errors import ConfigError

if TYPE_CHECKING:
    from archon_core.plugins import Registry

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
            ConfigError: it is AReaL's registry in a Ray actor.
            UnknownNameError: no installed package provides it.
        """
        from archon_core.plugins import registry

        plugins = registry()
        refuse_ray(self.config.type, plugins)
        return plugins.get(ServerRegistrySpec, self.config.type)

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


def refuse_ray(name: str, plugins: Registry) -> None:
    """Raise for AReaL's registry in a Ray actor, unless a plugin provides it.

    Raises:
        ConfigError: no package has it.
    """
    if name == "ray" and not any("ray" in (spec.name, *spec.aliases) for spec in plugins.all(ServerRegistrySpec)):
        raise ConfigError(
            f"{OPTION}: found 'ray', which keeps names in a Ray actor and needs archon-ray; that package does not "
            "exist yet; use folder, on a file system that all hosts share, or etcd"
        )
