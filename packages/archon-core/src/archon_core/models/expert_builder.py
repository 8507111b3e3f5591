"""Who builds a model's mixture-of-experts blocks: the package that is installed for it."""

from __future__ import annotations

from archon_core.config.schema import ArchonOptions
from archon_core.errors import ConfigError, UnknownNameError
from archon_core.plugins.hints import explain_none
from archon_core.plugins.registry import Registry
from archon_core.plugins.specs import ModelSpec, MoESpec
from archon_core.protocols import MoEBuilder


def expert_builder(spec: ModelSpec, registry: Registry, options: ArchonOptions, *, role: str) -> MoEBuilder | None:
    """The builder for the model of ``spec``; ``None`` for one without experts.

    Args:
        options: ``moe`` chooses; null takes the only one installed.
        role: the name of their section, for messages.

    Raises:
        UnknownNameError: none is installed, or none of the name that is asked for.
        ConfigError: several are, and none is chosen.
    """
    if "moe" not in spec.needs:
        return None
    if options.moe is not None:
        return registry.get(MoESpec, options.moe).load()(options)
    installed = registry.all(MoESpec)
    if not installed:
        raise UnknownNameError(f"model {spec.name!r} has experts. {explain_none(MoESpec.kind, registry.plugins)}")
    if len(installed) > 1:
        names = ", ".join(moe.name for moe in installed)
        raise ConfigError(
            f"{role}.archon.moe: found none chosen and several installed; allowed are {names}; set it to one of them"
        )
    return installed[0].load()(options)
