"""A model's module without an engine: for its names, shapes and numbers on one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archon_core.contracts.model import ModelArguments, ModelSpec
from archon_core.plugins.registry import Registry, registry
from archon_core.selection import select_experts
from archon_engine.options.archon import ArchonOptions

if TYPE_CHECKING:
    from torch import nn

    from archon_core.models.stage import Stage


def build_alone(
    spec: ModelSpec, arguments: ModelArguments, stage: Stage | None = None, *, installed: Registry | None = None
) -> nn.Module:
    """Build the module.

    Args:
        spec: the model's.
        arguments: made by its arguments class.
        stage: which part of the model; ``None`` for all.
        installed: where to find who builds experts; ``None`` for the registry of this process.

    Raises:
        UnknownNameError, ConfigError: the model has experts, and no package or several build them.
    """
    experts = select_experts(spec, installed or registry())
    builder = None if experts is None else experts.load()(ArchonOptions())
    return spec.load().build(arguments, stage, experts=builder)
