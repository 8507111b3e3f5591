"""Plugin registration of archon-ray. Imports neither Ray nor torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.contracts.launching import LauncherSpec
from archon_core.contracts.server_registry import ServerRegistrySpec
from archon_core.contracts.spec import ConfigSection
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"

SCHEDULING = ("cpu", "mem", "env_vars", "nodelist", "exclude")
"""Fields of ``scheduling_spec`` that placement groups have. Ray has no counterpart of the others."""


@hookimpl
def archon_launchers() -> Iterable[LauncherSpec]:
    return [
        LauncherSpec(
            name="ray",
            target="archon_ray.launcher:RayLauncher",
            summary="placement groups of a Ray cluster for the trainer and the inference servers",
            scheduling=SCHEDULING,
            starts_servers=True,
            check="archon_ray.checks:check_run",
            config=(ConfigSection("ray", "archon_ray.options:RayOptions"),),
        )
    ]


@hookimpl
def archon_registries() -> Iterable[ServerRegistrySpec]:
    return [
        ServerRegistrySpec(
            name="ray",
            target="archon_ray.registry:ray_registry",
            summary="entries in a named actor of a Ray cluster (RAY_ADDRESS, cluster.name_resolve.ray_actor_name)",
        )
    ]
