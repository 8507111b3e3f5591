"""Install hints: the package that provides a missing name. ``first_party``, generated from the packages, has the names
of Archon's packages.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

from archon_core.plugins.discovery import normalise
from archon_core.plugins.first_party import OPTIONS, PACKAGES
from archon_core.plugins.status import PluginStatus

FIRST_STEPS = (
    "Training: pip install archon-train. Models: pip install archon-models-qwen. Algorithms: pip install archon-rl. "
    "Rollout: pip install archon-rollout."
)
"""Advice for an installation of core alone."""

LABELS: Mapping[str, str] = {"moe": "mixture-of-experts block"}
"""Kind -> its name in messages, where that differs."""


def label(kind: str) -> str:
    """The name of a kind in messages: ``train engine`` for ``train_engine``."""
    return LABELS.get(kind, kind.replace("_", " "))


def package_for(kind: str, name: str) -> str | None:
    """The first-party package that provides ``name``, or ``None``."""
    for package, names in PACKAGES.get(kind, {}).items():
        if name in names:
            return package
    return None


def package_for_option(path: str, *, known: Callable[[str], bool] = lambda option: False) -> str | None:
    """The first-party package that brings a configuration option, given its dotted path, or ``None``.

    Args:
        path: of the option.
        known: whether the configuration has an option or section of a dotted name. An unknown option in an existing
            section is misspelt, not missing.
    """
    owners = {
        option: package
        for package, options in OPTIONS.items()
        for option in options
        if path == option or path.startswith(f"{option}.")
    }
    nearest_option = max(owners, key=len, default=None)
    return None if nearest_option is None or known(nearest_option) else owners[nearest_option]


def not_installed(kind: str, plugins: Sequence[PluginStatus]) -> dict[str, str]:
    """Names of a kind -> the first-party package that provides them, for packages that are not installed."""
    there = {normalise(plugin.distribution) for plugin in plugins}
    return {
        name: package for package, names in PACKAGES.get(kind, {}).items() if package not in there for name in names
    }


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The closest of ``known``, ignoring case; ``None`` if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def explain_unknown(
    kind: str,
    name: str,
    *,
    listed: Sequence[str],
    aliases: Sequence[str] = (),
    plugins: Sequence[PluginStatus],
    noun: str | None = None,
    advice: str = "",
) -> str:
    """The message for an unknown name: the package that provides it, or the nearest name and all installed names.

    Args:
        kind: kind of the requested spec.
        name: the requested name.
        listed: installed names.
        aliases: installed aliases, used only for suggestions.
        plugins: all plugins; the message lists unloaded ones with their cause, since they may provide the name.
        noun: describes ``name``; ``None`` for the kind's label.
        advice: what a plugin says about the name, in place of the nearest one.
    """
    noun = noun or label(kind)
    package = package_for(kind, name)
    owners = [plugin for plugin in plugins if package and normalise(plugin.distribution) == package]
    first = f"{noun} {name!r}: no installed plugin provides it"
    lines = []
    if package and not owners:
        lines.append(f"{first}. It is part of {package}: pip install {package}")
    elif owners and all(owner.status == "loaded" for owner in owners):
        lines.append(
            f"{first}. It is part of {package}, but {owners[0]}, which is installed, does not have it; "
            f"a newer version may: pip install --upgrade {package}"
        )
    elif owners:
        lines.append(f"{first}. It is part of {package}, which is installed but not loaded")
    else:
        lines.append(first + (f"; {advice}" if advice else _suggestion(kind, name, [*listed, *aliases])))
        nouns = noun[:-1] + "ies" if noun.endswith("ry") else noun + ("es" if noun.endswith("s") else "s")
        lines.append(f"Installed {nouns}: {', '.join(listed)}" if listed else explain_none(kind, plugins, noun=noun))
    for plugin in plugins:
        if not _may_provide(plugin, kind):
            continue
        if plugin.cause:
            lines.append(f"{plugin} may have it, but is not loaded ({plugin.status}): {plugin.cause}")
        lines += [f"{plugin} may have it, but: {problem}" for problem in plugin.problems]
    return "\n".join(lines)


def alternatives(model_type: str, plugins: Sequence[PluginStatus]) -> str:
    """Advice for a model type that no spec serves, with the required packages."""

    def unless_there(package: str) -> str:
        there = any(normalise(p.distribution) == package and p.status == "loaded" for p in plugins)
        return "" if there else f" (pip install {package})"

    unchanged, scaffold = unless_there("archon-models-hf"), unless_there("archon-scaffold")
    return (
        f"Alternatives: run transformers' own module{unchanged}, if it has a causal language model of that type, "
        "with an fsdp: backend in place of archon:, or with archon: and actor.archon.model=hf in a run (archon verify, "
        "generate and convert take --model hf); write a package with archon new model NAME --from-hf "
        f"CONFIG{scaffold}; or install a package that serves {model_type!r}"
    )


def explain_none(kind: str, plugins: Sequence[PluginStatus], *, noun: str | None = None) -> str:
    """The message for an empty list of specs of a kind."""
    text = f"No {noun or label(kind)} is available"
    package = next(iter(PACKAGES.get(kind, {})), None)
    if package is None:
        return text
    owner = next((plugin for plugin in plugins if normalise(plugin.distribution) == package), None)
    if owner is None:
        return f"{text}; {package} brings some: pip install {package}"
    return f"{text}, although {owner}, which brings some, is installed ({owner.status}); archon plugins says more"


def _may_provide(plugin: PluginStatus, kind: str) -> bool:
    """Whether a plugin may provide specs of a kind; always true for third-party packages."""
    package = normalise(plugin.distribution)
    ours = any(package in packages for packages in PACKAGES.values())
    return package in PACKAGES.get(kind, {}) or not ours


def _suggestion(kind: str, name: str, installed: Sequence[str]) -> str:
    hinted = [candidate for names in PACKAGES.get(kind, {}).values() for candidate in names]
    close = nearest(name, [*hinted, *installed])
    if close is None:
        return ""
    if close in installed:
        return f"; did you mean {close!r}?"
    package = package_for(kind, close)
    return f"; did you mean {close!r}? That is part of {package}: pip install {package}" if package else ""
