"""Which package to install for a name that nothing provides, and how to say so.

The tables name what Archon's own packages bring, installed or not. They only serve messages: a plugin works
without standing here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from archon_core.plugins.discovery import normalise
from archon_core.plugins.status import PluginStatus

PACKAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "model": {"archon-models-qwen": ("qwen2", "qwen3", "qwen3_moe"), "archon-models-hf": ("hf",)},
    "schedule": {
        "archon-pipeline": (
            "GPipe",
            "1F1B",
            "Interleaved1F1B",
            "I1F1B",
            "InterleavedZeroBubble",
            "IZB",
            "ZB1P",
            "ZBVZeroBubble",
            "ZBV",
        )
    },
    "pipeline": {"archon-pipeline": ("pipeline",)},
    "moe": {"archon-moe": ("moe",)},
    "train_engine": {"archon-models-hf": ("fsdp",)},
    "inference_engine": {"archon-rollout": ("local", "sglang", "vllm")},
    "weight_transport": {"archon-rollout": ("disk", "shm", "distributed")},
    "launcher": {"archon-ray": ("ray",)},
    "algorithm": {"archon-rl": ("sft", "grpo", "ppo", "dapo")},
    "reward": {"archon-rl": ("arithmetic", "exact", "gsm8k")},
    "dataset": {"archon-rl": ("jsonl", "hf", "arithmetic")},
    "command": {
        "archon-rollout": ("generate",),
        "archon-pipeline": ("pipeline",),
        "archon-testing": ("verify",),
        "archon-scaffold": ("new",),
    },
}
"""Kind of spec -> package -> names and aliases. The first package of a kind is the one to begin with."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "archon-rl": (
        "warm_start",
        "data.arithmetic",
        "data.hf",
        "tokenizer.use_chat_template",
        "actor.ppo_n_minibatches",
        "actor.eps_clip",
        "actor.eps_clip_higher",
        "actor.c_clip",
        "actor.reward_norm",
        "actor.reward_scaling",
        "actor.reward_bias",
        "actor.reward_clip",
        "actor.overlong_reward_penalty",
        "actor.overlong_tokens",
        "actor.overlong_penalty_factor",
        "actor.mask_no_eos_with_zero",
        "actor.dynamic_sampling",
        "actor.discount",
        "actor.gae_lambda",
        "actor.adv_norm",
        "actor.kl_ctl",
        "actor.kl_estimator",
        "actor.recompute_logprob",
        "actor.use_decoupled_loss",
        "actor.behave_imp_weight_cap",
        "actor.behave_imp_weight_mode",
        "actor.loss_aggregation",
        "actor.kl_loss_coef",
        "actor.kl_loss_estimator",
        "actor.entropy_coef",
    ),
    "archon-rollout": ("sglang", "vllm"),
    "archon-moe": tuple(
        f"{role}.archon.{option}"
        for role in ("actor", "critic", "ref", "teacher")
        for option in (
            "moe_grouped_gemm",
            "moe_aux_loss",
            "moe_aux_loss_coef",
            "moe_z_loss_coef",
            "moe_bias_update_rate",
        )
    ),
    "archon-ray": ("ray",),
}
"""Package -> configuration sections and options that it brings."""

FIRST_STEPS = (
    "Models: pip install archon-models-qwen. Algorithms: pip install archon-rl. Rollout: pip install archon-rollout."
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


def package_for_option(path: str) -> str | None:
    """The first-party package that brings a configuration option, given its dotted path, or ``None``."""
    for package, options in OPTIONS.items():
        if any(path == option or path.startswith(f"{option}.") for option in options):
            return package
    return None


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
        lines.append(f"Installed {noun}s: {', '.join(listed)}" if listed else explain_none(kind, plugins, noun=noun))
    for plugin in plugins:
        if not _may_provide(plugin, kind):
            continue
        if plugin.cause:
            lines.append(f"{plugin} may have it, but is not loaded ({plugin.status}): {plugin.cause}")
        lines += [f"{plugin} may have it, but: {problem}" for problem in plugin.problems]
    return "\n".join(lines)


def ways_out(model_type: str, plugins: Sequence[PluginStatus]) -> str:
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
