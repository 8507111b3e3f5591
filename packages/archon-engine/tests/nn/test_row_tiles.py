"""Norms, rotations and gates tile by tile against autograd of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from archon_engine.nn import tiles
from archon_engine.nn.gated_silu import gated_silu
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.rotary import Rotation


@pytest.fixture(autouse=True)
def tiles_of_two_rows(monkeypatch):
    """Of 8 features, so that 7 rows end in a tile of one."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 16)


def gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.randn_like(out))]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("rounds_first", [True, False])
@pytest.mark.parametrize("shape", [(7, 8), (3, 5, 8), (0, 8)])
def test_gradients_of_a_norm_are_those_of_its_formula(shape, rounds_first: bool, offset: float) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(8, 1e-6, offset=offset, rounds_first=rounds_first).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = (norm.weight + offset) * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for found, other in zip(gradients(norm(x), x, norm.weight), gradients(expected, x, norm.weight), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-12)


def test_a_norm_computes_16_bit_gradients_in_fp32() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    norm.bfloat16()
    x = torch.randn(7, 8, dtype=torch.bfloat16, requires_grad=True)
    exact, exact_x = RMSNorm(8, 1e-6).double(), x.detach().double().requires_grad_()
    exact.weight.data.copy_(norm.weight)
    # Gradients of the result are drawn in bf16 for both.
    out, exact_out = norm(x), exact(exact_x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, norm.weight), grad)
    for one, other in zip(found, torch.autograd.grad(exact_out, (exact_x, exact.weight), grad.double()), strict=True):
        assert one.dtype == torch.bfloat16
        # One rounding to 8 bits of precision.
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)


def test_the_gradient_of_a_norm_without_a_trained_weight_or_input() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(8, 1e-6).double(), torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    both = gradients(norm(x), x, norm.weight)
    assert torch.equal(gradients(norm(x.detach()), norm.weight)[1], both[2])
    norm.requires_grad_(False)
    assert torch.equal(gradients(norm(x), x)[1], both[1])


@pytest.mark.parametrize("heads", [1, 3])
def test_a_rotation_and_its_gradient_are_those_of_the_formula(heads: int) -> None:
    torch.manual_seed(0)
    angles = torch.randn(7, 1, 4, dtype=torch.float64)
    of_both_halves = torch.cat((angles, angles), dim=-1)
    rotation = Rotation(of_both_halves.cos(), of_both_halves.sin())
    x = torch.randn(7, heads, 8, dtype=torch.float64, requires_grad=True)
    as_complex = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles)
    expected = torch.cat((as_complex.real, as_complex.imag), -1)
    for found, other in zip(gradients(rotation.apply(x), x), gradients(expected, x), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(7, 8), (3, 5, 8), (0, 8)])
def test_a_gate_and_its_gradients_are_those_of_the_formula(shape) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    # With three dims, not contiguous; the result is, and its gradients are drawn in the order of memory.
    gate, up = (leaf.transpose(0, -2) for leaf in leaves)
    expected, out = (gate / (1 + torch.exp(-gate)) * up).contiguous(), gated_silu(gate, up)
    for found, other in zip(gradients(out, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(gated_silu(gate, up), out)


def test_a_gate_computes_the_gradients_that_are_needed() -> None:
    torch.manual_seed(0)
    whole = [torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    gated_silu(*whole).sum().backward()
    for needed in (0, 1):
        part = [x.detach().requires_grad_(i == needed) for i, x in enumerate(whole)]
        gated_silu(*part).sum().backward()
        assert torch.equal(part[needed].grad, whole[needed].grad)
        assert part[1 - needed].grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gate_rounds_where_torch_does(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(7, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    for found, other in zip(
        gradients(gated_silu(gate, up), gate, up), gradients(silu(gate) * up, gate, up), strict=True
    ):
        assert torch.equal(found, other)
