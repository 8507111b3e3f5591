"""The inference engines that ``rollout.backend`` can name: those of plugins, and one for each installed server driver.

One engine runs the servers of any driver (``InferenceEngineSpec.runs_servers``), so a driver package registers a
``ServerDriverSpec`` only: with archon-vllm and archon-rollout installed, ``vllm:d2t2`` is a backend.
"""

from __future__ import annotations

from dataclasses import replace

from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import UnknownNameError
from archon_core.plugins.hints import package_for
from archon_core.plugins.registry import Registry

RUNNER = "archon-rollout"
"""The package whose engine runs servers."""


def inference_engines(registry: Registry) -> list[InferenceEngineSpec]:
    """All inference engines. Those of drivers have the driver's name, aliases, letters and origin.

    Without an engine that runs servers, drivers are left out.
    """
    engines = registry.all(InferenceEngineSpec)
    runner = next((engine for engine in engines if engine.runs_servers), None)
    if runner is None:
        return engines
    taken = {name for engine in engines for name in (engine.name, *engine.aliases)}
    drivers = [driver for driver in registry.all(ServerDriverSpec) if driver.name not in taken]
    return [*engines, *(_engine_of(driver, runner) for driver in drivers)]


def find_inference_engine(registry: Registry, name: str) -> InferenceEngineSpec:
    """The engine of this name or alias.

    Raises:
        UnknownNameError: nothing provides it. The message says which package to install.
        PluginError: more than one plugin provides it.
    """
    try:
        return registry.get(InferenceEngineSpec, name)
    except UnknownNameError:
        for engine in inference_engines(registry):
            if name in (engine.name, *engine.aliases):
                return engine
        if missing_engine_packages(registry, name) == (RUNNER,):
            raise UnknownNameError(
                f"inference engine {name!r}: found a driver of its servers, but no engine that runs them; "
                f"pip install {RUNNER}"
            ) from None
        raise


def missing_engine_packages(registry: Registry, name: str) -> tuple[str, ...]:
    """First-party packages to install for an engine that is not there: its driver's, and that of what runs servers."""
    driver = package_for(ServerDriverSpec.kind, name)
    installed = any(name in (spec.name, *spec.aliases) for spec in registry.all(ServerDriverSpec))
    runs = any(engine.runs_servers for engine in registry.all(InferenceEngineSpec))
    if driver is None and not installed:
        return ()
    needed = [*([driver] if driver and not installed else []), *([] if runs else [RUNNER])]
    return tuple(dict.fromkeys(needed))


def _engine_of(driver: ServerDriverSpec, runner: InferenceEngineSpec) -> InferenceEngineSpec:
    return replace(
        runner,
        name=driver.name,
        aliases=driver.aliases,
        letters=driver.letters,
        summary=driver.summary,
        config=(),
        origin=driver.origin,
    )
