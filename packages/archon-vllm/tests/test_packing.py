"""Layers that share weights use the new ones after a reload, also where vLLM multiplies by a packed copy."""

import torch
from torch import nn

from archon_vllm.in_server.packing import pack_tied_layers


class Packing:
    """vLLM's method of an unquantized layer on the CPU."""

    def process_weights_after_loading(self, layer):
        packed = layer.weight.detach().clone()
        layer.cpu_linear = lambda x: x @ packed.T


class Layer(nn.Module):
    def __init__(self, weight, *, packs=True):
        super().__init__()
        self.weight = weight
        self.quant_method = Packing()
        if packs:
            self.quant_method.process_weights_after_loading(self)


def test_only_layers_that_share_their_weights_are_packed_again():
    shared, own = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    model = nn.ModuleDict({"embed": Layer(shared, packs=False), "between": Layer(own), "head": Layer(shared)})
    with torch.no_grad():
        shared.fill_(2.0)
        own.fill_(2.0)
    x = torch.ones(1, 2)
    kept = model["between"].cpu_linear
    pack_tied_layers(model)
    assert torch.equal(model["head"].cpu_linear(x), torch.full((1, 3), 4.0))
    assert model["between"].cpu_linear is kept
    assert not hasattr(model["embed"], "cpu_linear")
