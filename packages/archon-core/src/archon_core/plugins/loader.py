"""Loads plugins one at a time, so that a broken plugin is reported and the others keep working.

pluggy's bulk loader fails at the first plugin that does not import. Here every entry point is loaded separately, and
its errors become its ``PluginStatus``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pluggy

from archon_core.contracts.spec import Spec
from archon_core.installing import update_advice
from archon_core.plugins import hookspecs
from archon_core.plugins.discovery import distribution_name, distribution_version
from archon_core.plugins.hints import nearest
from archon_core.plugins.hookspecs import PROJECT_NAME
from archon_core.plugins.kinds import SPEC_TYPES
from archon_core.plugins.status import PluginStatus, describe_error

PLUGIN_API_SINCE: Mapping[tuple[int, int], str] = {(1, 0): "0.1"}
"""Plugin API -> the first release of core that has it: the lower bound of a plugin that declares it."""

PLUGIN_API = max(PLUGIN_API_SINCE)
"""Major and minor version of the plugin interface. A new minor version adds; a new major version breaks."""

CORE_DISTRIBUTION = "archon-core"

_PREFIX = f"{PROJECT_NAME}_"


def load_plugin(entry_point: importlib.metadata.EntryPoint, *, disabled: bool = False) -> PluginStatus:
    """Import one plugin and collect its specs. Never raises: errors become its status."""
    about = PluginStatus(
        name=entry_point.name,
        distribution=distribution_name(entry_point),
        version=distribution_version(entry_point),
        module=entry_point.value,
    )
    if disabled:
        cause = "disabled by ARCHON_DISABLE_PLUGINS or --no-plugin; remove its name there to use it"
        return replace(about, status="disabled", cause=cause)
    torch_was_imported = "torch" in sys.modules
    try:
        # Output of a plugin must not mix with a command's JSON.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = entry_point.load()
    except (Exception, SystemExit) as error:
        return _failed(about, f"importing {entry_point.value!r} raised {describe_error(error)}", error)
    incompatible = explain_incompatible(_declared_api(plugin, entry_point), about)
    if incompatible:
        return replace(about, status="incompatible", cause=incompatible)
    loaded = collect_specs(plugin, about)
    if "torch" in sys.modules and not torch_was_imported:
        slow = f"importing {entry_point.value!r} imports torch; name what needs it in targets, which are imported later"
        loaded = replace(loaded, problems=(*loaded.problems, slow))
    return loaded


def load_core() -> PluginStatus:
    """Core's own specs. They cannot be disabled, and an error in them is a bug of core."""
    from archon_core import __version__, plugin

    loaded = collect_specs(plugin, PluginStatus("core", CORE_DISTRIBUTION, __version__, plugin.__name__))
    assert loaded.status == "loaded", loaded.cause
    assert not loaded.problems, loaded.problems
    return loaded


def explain_incompatible(declared: object, plugin: PluginStatus) -> str:
    """Why a plugin with this ``ARCHON_PLUGIN_API`` is incompatible, with a fix; empty if it is compatible."""
    core_major, core_minor = PLUGIN_API
    core_has = f"archon-core has plugin API {core_major}.{core_minor}"
    upgrade_plugin = update_advice(plugin.distribution or plugin.name)
    if declared is None:
        return (
            f"it declares no plugin API; {core_has}. Its author adds ARCHON_PLUGIN_API = "
            f'"{core_major}.{core_minor}" to {plugin.module}; a newer release may have it: {upgrade_plugin}'
        )
    match = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", declared) if isinstance(declared, str) else None
    if match is None:
        return (
            f"it declares ARCHON_PLUGIN_API = {declared!r}, which is not of the form "
            f'"{core_major}.{core_minor}"; a newer release may correct it: {upgrade_plugin}'
        )
    major, minor = int(match[1]), int(match[2])
    if major == core_major and minor <= core_minor:
        return ""
    behind = upgrade_plugin if major < core_major else update_advice(CORE_DISTRIBUTION)
    return f"it is made for plugin API {declared}; {core_has}: {behind}"


def collect_specs(plugin: Any, about: PluginStatus) -> PluginStatus:
    """Call the hooks of an imported plugin and check what they return.

    A hook that raises, or returns anything but specs of its kind, makes the plugin ``failed``: it then provides
    nothing, rather than an arbitrary part of its specs.
    """
    # A separate manager isolates one plugin's errors and hook wrappers from the others.
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=about.name)
    except Exception as error:
        return _failed(about, f"its hooks do not fit: {describe_error(error)}", error)
    specs: list[Spec] = []
    for spec_type in SPEC_TYPES:
        try:
            for provided in getattr(manager.hook, spec_type.hook)():
                specs += _checked_specs(provided, spec_type)
        except Exception as error:
            return _failed(about, f"hook {spec_type.hook} raised {describe_error(error)}", error)
    return replace(
        about,
        specs=tuple(replace(spec, origin=about.distribution) for spec in specs),
        problems=tuple(_misspelt_hooks(manager, plugin)),
    )


def check_spec(spec: Spec) -> None:
    """Raise ``ValueError`` if a spec's name, aliases or target are malformed."""
    described = f"{type(spec).__name__} {spec.name!r}"
    for name in (spec.name, *spec.aliases):
        if not isinstance(name, str) or not re.fullmatch(r"\S+", name):
            raise ValueError(f"{described} has the name {name!r}; a name is text without spaces")
    if len({spec.name, *spec.aliases}) <= len(spec.aliases):
        raise ValueError(f"{described} has an alias twice, or equal to its name: {spec.aliases}; leave it out")
    if not re.fullmatch(r"[\w.]+:[\w.]+", spec.target):
        raise ValueError(f"{described} has the target {spec.target!r}; write 'package.module:attribute'")


def _checked_specs(provided: object, spec_type: type[Spec]) -> list[Spec]:
    if isinstance(provided, Spec) or not isinstance(provided, Iterable):
        raise TypeError(f"it returned {type(provided).__name__}; return a list of {spec_type.__name__}")
    specs = list(provided)
    for spec in specs:
        if not isinstance(spec, spec_type):
            raise TypeError(f"it returned {type(spec).__name__} in its list; every item is a {spec_type.__name__}")
        check_spec(spec)
    return specs


def _misspelt_hooks(manager: pluggy.PluginManager, plugin: Any) -> Iterator[str]:
    known = [spec_type.hook for spec_type in SPEC_TYPES]
    for caller in manager.get_hookcallers(plugin) or []:
        # An optional hook belongs to a newer plugin API and may be unknown here.
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            meant = _suggest_hook(caller.name, known) or "; known are " + ", ".join(known)
            yield f"{caller.name} is not a hook of Archon{meant}"
    for name in sorted(dir(plugin)):
        if not name.startswith(_PREFIX) or manager.parse_hookimpl_opts(plugin, name) is not None:
            continue
        function = inspect.getattr_static(plugin, name)
        imported = inspect.ismodule(plugin) and getattr(function, "__module__", None) != plugin.__name__
        if not inspect.isfunction(function) or imported:
            continue
        if name in known:
            yield f"{name} is not marked as a hook, so it is not called; put @hookimpl (archon_core.plugins) above it"
        else:
            meant = _suggest_hook(name, known) or f"; names that begin with {_PREFIX} are kept for hooks, rename it"
            yield f"{name} is neither marked with @hookimpl nor named like a hook{meant}"


def _suggest_hook(name: str, known: Sequence[str]) -> str:
    # The common prefix would make all hook names look similar.
    close = nearest(name.removeprefix(_PREFIX), [hook.removeprefix(_PREFIX) for hook in known])
    return f"; did you mean '{_PREFIX}{close}'?" if close else ""


def _declared_api(plugin: Any, entry_point: importlib.metadata.EntryPoint) -> object:
    declared = getattr(plugin, "ARCHON_PLUGIN_API", None)
    if declared is None:  # an entry point may name an object in a module, and the module declare the version
        declared = getattr(sys.modules.get(entry_point.module), "ARCHON_PLUGIN_API", None)
    return declared


def _failed(about: PluginStatus, what: str, error: BaseException) -> PluginStatus:
    missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
    if missing and missing.partition(".")[0] == "archon_core":
        fix = "this archon-core lacks a module or name that it imports: pip install --upgrade archon-core"
    else:
        update = update_advice(about.distribution or about.name)
        fix = f"update it: {update}, or disable it: ARCHON_DISABLE_PLUGINS={about.name}"
    return replace(about, status="failed", cause=f"{what}; {fix}", error=error)
