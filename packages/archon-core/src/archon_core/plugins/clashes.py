"""Finds names that more than one plugin provides, and explains how to resolve the clash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from archon_core.plugins.hints import label
from archon_core.plugins.loader import CORE_DISTRIBUTION
from archon_core.plugins.status import IN_PROCESS, PluginStatus

Claims = Mapping[tuple[str, str], Sequence[PluginStatus]]
"""(kind, name or alias) -> the plugins that provide it, with repetitions."""


def collect_claims(plugins: Sequence[PluginStatus]) -> Claims:
    """The plugins that provide each name."""
    claims: defaultdict[tuple[str, str], list[PluginStatus]] = defaultdict(list)
    for plugin in plugins:
        for spec in plugin.specs:
            for name in (spec.name, *spec.aliases):
                claims[spec.kind, name].append(plugin)
    return dict(claims)


def clashes_of(plugin: PluginStatus, claims: Claims) -> list[str]:
    """A message for each clashing name of ``plugin``; none for core, whose names take precedence."""
    if is_core(plugin):
        return []
    return [
        explain_clash(kind, name, claimants)
        for (kind, name), claimants in claims.items()
        if len(claimants) > 1 and plugin in claimants
    ]


def explain_clash(kind: str, name: str, claimants: Sequence[PluginStatus]) -> str:
    """The message of a clash: the providers, and how to disable each."""
    who = " and ".join(_describe(plugin) for plugin in claimants)
    ways = dict.fromkeys(_remedy(kind, name, plugin, claimants) for plugin in claimants if not is_core(plugin))
    return f"{label(kind)} {name!r} is provided by {who}; leave one of them out: {' or '.join(ways)}"


def is_core(plugin: PluginStatus) -> bool:
    """Whether these are core's own specs."""
    return plugin.distribution == CORE_DISTRIBUTION


def _describe(plugin: PluginStatus) -> str:
    return str(plugin) if plugin.distribution in (CORE_DISTRIBUTION, IN_PROCESS) else f"{plugin} ({plugin.name})"


def _remedy(kind: str, name: str, plugin: PluginStatus, claimants: Sequence[PluginStatus]) -> str:
    if plugin.distribution == IN_PROCESS:
        return f"archon_core.registry().remove({kind!r}, {name!r})"
    namesakes = {other.distribution for other in claimants if other.name == plugin.name}
    return f"ARCHON_DISABLE_PLUGINS={plugin.distribution if len(namesakes) > 1 else plugin.name}"


def explain_several_builders(names: Sequence[str], option: str | None) -> str:
    """The message if several packages build experts and none is chosen.

    Args:
        option: the option that selects one; ``None`` without a configuration.
    """
    if option is None:
        return (
            f"experts: found {len(names)} packages that build them and none chosen; allowed are {', '.join(names)}; "
            "disable the plugins of all but one with ARCHON_DISABLE_PLUGINS"
        )
    return f"{option}: found none chosen and several installed; allowed are {', '.join(names)}; set it to one of them"
