"""Builds a module from a model's spec, materialises it, and draws random weights from a seed.

Each parameter is drawn on the CPU in fp32 from a separate generator, seeded with the run's seed and the parameter's
global name. So its values depend neither on other parameters nor on device, dtype, pipeline stage or sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from archon_core.contracts.model import ModelArguments, ModelSpec
from archon_core.contracts.module import FillsBuffers, InitialValue, initial_values
from archon_core.models.box import Box, Shape
from archon_core.models.stage import Stage
from archon_core.plugins.registry import Registry, registry
from archon_core.seeding import derive_seed
from archon_core.selection import select_experts
from archon_engine.models.parameter_names import named_weights, owners
from archon_engine.options.archon import ArchonOptions


def build_module(
    spec: ModelSpec, arguments: ModelArguments, stage: Stage | None = None, *, installed: Registry | None = None
) -> nn.Module:
    """Build a model's module without an engine, on one process.

    Args:
        spec: spec of the model.
        arguments: instance of the spec's arguments class.
        stage: the pipeline stage to build; ``None`` for the whole model.
        installed: registry that provides the package of the experts; ``None`` for the registry of this process.

    Raises:
        UnknownNameError, ConfigError: the model has experts, and no installed package builds them, or several do.
    """
    experts = select_experts(spec, installed or registry())
    builder = None if experts is None else experts.load()(ArchonOptions())
    return spec.load().build(arguments, stage, experts=builder)


def materialize_empty(
    module: nn.Module, device: torch.device | str, *, buffer_device: torch.device | str | None = None
) -> None:
    """Replace meta tensors by uninitialised ones on ``device``, in place; tied parameters stay tied.

    ``nn.Module.to_empty`` visits a shared parameter once per owner and makes a new one each time, which unties them. It
    also empties buffers, so modules that keep constants there write them again (``contracts.module.FillsBuffers``).

    Args:
        buffer_device: device of the buffers; ``None`` for ``device``. It differs if parameters stay in host memory.
    """
    shared: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for attribute, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            shared.setdefault(parameter, []).append((owner, attribute))
    module.to_empty(device=device)
    for (first, first_attribute), *others in shared.values():
        for owner, attribute in others:
            setattr(owner, attribute, getattr(first, first_attribute))
    if buffer_device is not None:
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[name] = torch.empty_like(buffer, device=buffer_device)
    for part in list(module.modules()):
        if isinstance(part, FillsBuffers):
            part.fill_buffers()


def draw_weight(name: str, shape: Shape, kind: InitialValue, seed: int, std: float) -> Tensor:
    """The whole initial tensor of parameter ``name``: fp32 on the CPU.

    Args:
        kind: as ``InitialValue`` describes; ``std`` is the standard deviation of ``normal``.
    """
    with torch.device("cpu"):
        if kind == "ones":
            return torch.ones(shape)
        if kind == "zeros":
            return torch.zeros(shape)
        generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
        if kind == "fan_in":
            bound = shape[-1] ** -0.5
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)
        if kind == "log_uniform":
            return torch.empty(shape).uniform_(0.01, 16.0, generator=generator).log_()
        return torch.empty(shape).normal_(0.0, std, generator=generator)


def initial_value(owner: nn.Module, attribute: str, parameter: Tensor) -> InitialValue:
    """The kind of initial value of the parameter ``owner.attribute``.

    ``archon_core.contracts.module.initial_values`` states the rule, and how a module overrides it.
    """
    declared = initial_values(owner)
    if attribute in declared:
        return declared[attribute]
    if attribute.endswith("bias"):
        return "zeros"
    return "normal" if parameter.ndim >= 2 else "ones"


@torch.no_grad()
def initialize_weights(
    module: nn.Module,
    seed: int,
    std: float,
    *,
    only: Collection[str] | None = None,
    ties: Mapping[str, str] | None = None,
    local_part: Callable[[Tensor], tuple[Tensor, Box]] | None = None,
) -> None:
    """Fill the parameters of ``module`` in place. They must not be on the meta device.

    Args:
        seed: the run's seed.
        std: standard deviation of matrices and embeddings.
        only: global names of the parameters to fill; ``None`` for all.
        ties: name of a tied parameter -> name of its original (``ResolvedMap.ties``), so that a separate copy, such as
            a head on the last pipeline stage, gets the values of the original.
        local_part: returns a parameter's storage on this process, and the box of the whole tensor that it holds;
            ``None`` for unsharded parameters.
    """
    for name, owner, attribute, parameter in owners(module):
        if only is not None and name not in only:
            continue
        drawn_as = (ties or {}).get(name, name)
        kind = initial_value(owner, attribute, parameter)
        whole = draw_weight(drawn_as, tuple(parameter.shape), kind, seed, std)
        if local_part is None:
            parameter.copy_(whole)
        else:
            storage, box = local_part(parameter)
            storage.copy_(whole[box.slices])
    for name, weight in named_weights(module).items():
        if not isinstance(weight, nn.Parameter) and (only is None or name in only):
            weight.zero_()  # a persistent buffer, such as a router's bias for choosing
