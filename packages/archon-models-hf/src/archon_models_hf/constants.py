"""Non-persistent buffers of transformers' modules, such as rotary frequencies, and initial values of weights.

Only transformers knows both: ``_init_weights`` writes the buffers of a model that was built without storage, and
initialises the weights. It is called here for one module at a time.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archon_core.contracts.module import InitialValue
from archon_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INITIALISED = "_is_hf_initialized"
"""Attribute with which transformers marks an initialised tensor."""


@dataclass(frozen=True)
class Constant:
    """A buffer that is not part of checkpoints.

    Attributes:
        owner: its module.
        name: its name in the module.
        dtype: its dtype in transformers, independent of the weights' dtype.
    """

    owner: nn.Module
    name: str
    dtype: torch.dtype


def constants_of(module: nn.Module) -> tuple[Constant, ...]:
    """The constants of a module, as transformers built it."""
    return tuple(
        Constant(owner, name, buffer.dtype)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and name in owner._non_persistent_buffers_set
    )


@torch.no_grad()
def fill_constants(constants: tuple[Constant, ...], base: PreTrainedModel) -> None:
    """Recompute the constants, in their dtypes, on their current device.

    Raises:
        ModelError: transformers does not initialise one of them.
    """
    owners: dict[nn.Module, list[Constant]] = {}
    for constant in constants:
        old = constant.owner._buffers[constant.name]
        assert old is not None, "a constant does not go away"
        fresh = torch.empty(old.shape, dtype=constant.dtype, device=old.device)
        constant.owner._buffers[constant.name] = _marked(fresh)
        owners.setdefault(constant.owner, []).append(constant)
    for owner, own in owners.items():
        weights = [parameter for parameter in owner.parameters(recurse=False) if not hasattr(parameter, _INITIALISED)]
        for weight in weights:
            setattr(weight, _INITIALISED, True)
        base._init_weights(owner)
        for weight in weights:
            delattr(weight, _INITIALISED)
        lacking = [constant.name for constant in own if _is_marked(owner._buffers[constant.name])]
        if lacking:
            raise ModelError(
                f"{type(owner).__name__} of transformers keeps {', '.join(lacking)} in buffers that no checkpoint has "
                "and that its model does not initialise, so archon-models-hf cannot build it; use another version of "
                "transformers, or a model package that serves it"
            )


def starting_values(module: nn.Module, base: PreTrainedModel) -> dict[str, InitialValue]:
    """Attribute -> initial value, for vectors of ``module`` that transformers initialises to zero or one."""
    vectors = {n: p for n, p in module._parameters.items() if p is not None and p.ndim < 2}
    if not vectors or isinstance(module, nn.Linear | nn.Embedding):
        return {}
    twin = copy.copy(module)
    with torch.device("cpu"), torch.no_grad():
        drawn = {name: nn.Parameter(torch.full(p.shape, math.nan)) for name, p in vectors.items()}
        twin.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, **drawn}}
        base._init_weights(twin)
    found: dict[str, InitialValue] = {}
    for name, value in drawn.items():
        if bool((value == 0).all()):
            found[name] = "zeros"
        elif bool((value == 1).all()):
            found[name] = "ones"
    return found


def _mark(dtype: torch.dtype) -> Any:
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min if dtype != torch.bool else False


def _marked(tensor: Tensor) -> Tensor:
    return tensor.fill_(_mark(tensor.dtype))


def _is_marked(tensor: Tensor | None) -> bool:
    assert tensor is not None, "a constant does not go away"
    if tensor.dtype == torch.bool or not tensor.numel():
        return False
    unwritten = tensor.isnan() if tensor.dtype.is_floating_point else tensor == _mark(tensor.dtype)
    return bool(unwritten.any())
