"""Which package to install for a name that nothing provides, and how to say so.

The names that Archon's own packages bring stand in ``first_party``, which is made from the packages.
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
"""What to tell someone who has core alone."""

LABELS: Mapping[str, str] = {"moe": "mixture-of-experts block"}
"""What a kind is called in messages, where that is not the kind itself."""


def label(kind: str) -> str:
    """What a kind of spec is called in messages: ``train engine`` for ``train_engine``."""
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
        known: whether a configuration has the option or section of a dotted name. What stands in a section that is
            there is misspelt, not missing.
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
    """Names of a kind -> the first-party package that would bring them, of packages that are not installed."""
    there = {normalise(plugin.distribution) for plugin in plugins}
    return {
        name: package for package, names in PACKAGES.get(kind, {}).items() if package not in there for name in names
    }


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The closest of ``known``, whatever its case, or ``None`` when none is close."""
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
) -> str:
    """The message for a name that nothing provides: the package that has it, or the nearest name and the list.

    Args:
        kind: of the spec that was looked up.
        name: that was looked up.
        listed: names that would have been found.
        aliases: more of them, which are only suggested.
        plugins: all of them; those that are not loaded are named with their cause, since the name may be theirs.
        noun: what ``name`` is called; ``None`` for the kind's label.
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
        lines.append(first + _suggestion(kind, name, [*listed, *aliases]))
        nouns = noun + ("es" if noun.endswith("s") else "s")
        lines.append(f"Installed {nouns}: {', '.join(listed)}" if listed else explain_none(kind, plugins, noun=noun))
    for plugin in plugins:
        if not _may_provide(plugin, kind):
            continue
        if plugin.cause:
            lines.append(f"{plugin} may have it, but is not loaded ({plugin.status}): {plugin.cause}")
        lines += [f"{plugin} may have it, but: {problem}" for problem in plugin.problems]
    return "\n".join(lines)


def alternatives(model_type: str, plugins: Sequence[PluginStatus]) -> str:
    """What to do about a model type that no spec serves, with the packages that it takes."""

    def unless_there(package: str) -> str:
        there = any(normalise(p.distribution) == package and p.status == "loaded" for p in plugins)
        return "" if there else f" (pip install {package})"

    unchanged, scaffold = unless_there("archon-models-hf"), unless_there("archon-scaffold")
    return (
        f"Ways out: where transformers has a causal language model of that type, its own module unchanged{unchanged}, "
        "by an fsdp: backend in place of archon:, or by archon: with actor.archon.model=hf (--model hf on the command "
        f"line); a package of your own that archon new model NAME --from-hf CONFIG writes{scaffold}; or a package that "
        f"serves {model_type!r}"
    )


def explain_none(kind: str, plugins: Sequence[PluginStatus], *, noun: str | None = None) -> str:
    """The message where specs of a kind would be listed and there are none."""
    text = f"No {noun or label(kind)} is available"
    package = next(iter(PACKAGES.get(kind, {})), None)
    if package is None:
        return text
    owner = next((plugin for plugin in plugins if normalise(plugin.distribution) == package), None)
    if owner is None:
        return f"{text}; {package} brings some: pip install {package}"
    return f"{text}, although {owner}, which brings some, is installed ({owner.status}); archon plugins says more"


def _may_provide(plugin: PluginStatus, kind: str) -> bool:
    """Whether specs of a kind may come from a plugin. Of a package that is not ours nothing is known: they may."""
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
    return f"; did you mean {close!r}? That is part of {package}: pip install {package}"
