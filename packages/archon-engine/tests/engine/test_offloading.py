"""Where an engine's tensors are while it is idle."""

from __future__ import annotations

import torch
from torch import nn

from archon_engine.offloading import Residence


def test_buffers_stay_on_the_device_when_parameters_live_in_host_memory_anyway() -> None:
    # As with ``offload_params`` on a GPU; the meta device stands for it. Values could not come back from there.
    module = nn.BatchNorm1d(3)
    module.running_mean = torch.empty(3, device="meta")
    residence = Residence(module, None, None, role="actor")
    residence.offload()
    residence.onload()
    assert module.running_mean.device.type == "meta"
    assert module.weight.device.type == "cpu"
