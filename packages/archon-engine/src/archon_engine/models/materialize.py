"""Giving storage to a module that was built on the meta device."""

from __future__ import annotations

import torch
from torch import nn

from archon_core.contracts.module import FillsBuffers


def materialize_empty(
    module: nn.Module, device: torch.device | str, *, buffer_device: torch.device | str | None = None
) -> None:
    """Replace meta tensors by uninitialised ones on ``device``, in place; tied parameters stay one parameter.

    ``nn.Module.to_empty`` visits a shared parameter once per owner and makes a new one each time, which unties them. It
    also empties buffers, so modules that keep constants there write them anew (``contracts.module.FillsBuffers``).

    Args:
        buffer_device: where buffers go, when parameters are kept elsewhere than the module runs.
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
