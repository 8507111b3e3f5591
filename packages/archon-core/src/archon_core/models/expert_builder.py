"""Who builds a model's mixture-of-experts blocks: the package that is installed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archon_core.config.schema import ArchonOptions
from archon_core.errors import ConfigError, UnknownNameError
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.hints import explain_none
from archon_core.plugins.registry import Registry, registry
from archon_core.plugins.specs import ModelSpec, MoESpec
from archon_core.protocols import ModelArguments, MoEBuilder

if TYPE_CHECKING:
    from torch import nn

    from archon_core.models.stage import Stage


def expert_builder(
    spec: ModelSpec, registry: Registry, options: ArchonOptions, *, role: str | None
) -> MoEBuilder | None:
    """The builder for the model of ``spec``; ``None`` for one without experts.

    Args:
        options: ``moe`` chooses; null takes the only one installed.
        role: the name of their section, for messages; ``None`` where no configuration has chosen.

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
        raise ConfigError(explain_several_builders([moe.name for moe in installed], role))
    return installed[0].load()(options)


def build_alone(spec: ModelSpec, arguments: ModelArguments, stage: Stage | None = None) -> nn.Module:
    """The module of a model without an engine: for its names, shapes and numbers on one process.

    Args:
        spec: the model's.
        arguments: made by its arguments class.
        stage: which part of the model; ``None`` for all.

    Raises:
        UnknownNameError, ConfigError: as ``expert_builder`` does.
    """
    builder = expert_builder(spec, registry(), ArchonOptions(), role=None)
    return spec.load().build(arguments, stage, experts=builder)
