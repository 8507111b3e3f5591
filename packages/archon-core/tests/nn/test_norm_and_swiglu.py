from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from archon_core.errors import ModelError
from archon_core.nn.norm import RMSNorm
from archon_core.nn.swiglu import SwiGLU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rms_norm_equals_transformers_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(24, 1e-6).to(dtype), Qwen3RMSNorm(24, 1e-6).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.normal_())
    x = torch.randn(7, 24, dtype=dtype) * 3
    assert torch.equal(ours(x), theirs(x))


def test_rms_norm_keeps_float64_precision() -> None:
    x = torch.randn(7, 24, dtype=torch.float64)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(RMSNorm(24, 1e-6).double()(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_pytorch_tanh", lambda x: functional.gelu(x, approximate="tanh")),
        ("relu", functional.relu),
    ],
)
def test_the_gate_goes_through_the_named_activation(name: str, function) -> None:
    torch.manual_seed(0)
    block = SwiGLU(6, 10, name).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 6, dtype=torch.float64)
    gate, up, down = (p.weight for p in (block.gate_proj, block.up_proj, block.down_proj))
    torch.testing.assert_close(block(x), (function(x @ gate.T) * (x @ up.T)) @ down.T)


def test_an_unknown_activation_gets_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"'sillu'.*did you mean 'silu'"):
        SwiGLU(4, 4, "sillu")
