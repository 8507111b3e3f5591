"""Plugin registration of archon-etcd. Imports no client: the target is loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import ServerRegistrySpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_registries() -> Iterable[ServerRegistrySpec]:
    return [
        ServerRegistrySpec(
            name="etcd",
            aliases=("etcd3",),
            target="archon_etcd.registry:etcd_registry",
            summary="entries with a lease in etcd (cluster.name_resolve.etcd3_addr)",
        )
    ]
