"""Packed copies of weights, which vLLM's matrix products on the CPU use."""

from __future__ import annotations

from torch import nn


def pack_tied_layers(model: nn.Module) -> None:
    """Pack the weights of layers that share those of another layer once more.

    On the CPU, vLLM 0.32 multiplies by a packed copy of a layer's weights (``cpu_linear``). After a reload it packs
    only the layers that tensors were loaded for, so an output layer tied to the embedding keeps the old copy. Remove
    this when vLLM packs tied layers.
    """
    owners: dict[nn.Parameter, nn.Module] = {}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and owners.setdefault(weight, layer) is not layer:
            for tied in (owners[weight], layer):
                if hasattr(tied, "cpu_linear"):
                    tied.quant_method.process_weights_after_loading(tied)
