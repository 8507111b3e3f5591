from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from archon_core.errors import ModelError
from archon_engine.models.initialize import initialize_weights
from archon_engine.nn.norm import LayerNorm, ProjectionRMSNorm, RMSNorm
from archon_engine.nn.swiglu import SwiGLU

KINDS = {
    "Qwen 3": (Qwen3RMSNorm, {}),
    "Gemma 2": (Gemma2RMSNorm, {"offset": 1.0, "rounds_first": False}),
    "OLMo 2": (Olmo2RMSNorm, {"rounds_first": False}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rms_norm_equals_transformers_bit_for_bit(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    theirs_of, options = KINDS[kind]
    theirs = theirs_of(24, 1e-6).to(dtype)
    with torch.no_grad():
        theirs.weight.normal_()
    x = torch.randn(7, 24, dtype=dtype) * 3
    for norm in (RMSNorm, ProjectionRMSNorm):
        ours = norm(24, 1e-6, **options).to(dtype)
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))


def test_a_new_norm_scales_by_one_also_where_one_is_added_to_its_weight() -> None:
    for offset in (0.0, 1.0):
        norm = RMSNorm(6, 1e-6, offset=offset)
        with torch.no_grad():
            norm.weight.fill_(float("nan"))
        initialize_weights(norm, seed=1, std=0.02)
        torch.testing.assert_close(norm.weight + offset, torch.ones(6))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_equals_the_formula(bias: bool) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(24, 1e-5, bias=bias).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, 24, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    expected = norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected + (norm.bias if bias else 0.0), rtol=1e-13, atol=1e-13)


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
