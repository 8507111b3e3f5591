"""Adapters of experts against experts with merged weights."""

from __future__ import annotations

import pytest
import torch

from archon_core.contracts.moe import ClampedGate
from archon_moe.kernels.low_rank import adapted_experts
from archon_moe.kernels.operation import grouped_experts

E, F, H, N, K, RANK, SCALE = 5, 12, 8, 9, 2, 3, 0.7
SHAPES = {"gate_proj": (F, H), "up_proj": (F, H), "down_proj": (H, F)}


@pytest.mark.parametrize("adapted", [tuple(SHAPES), ("up_proj",)], ids=["all", "one"])
@pytest.mark.parametrize(("grouped", "dtype", "close"), [(False, torch.float64, 1e-12), (True, torch.float32, 1e-5)])
@pytest.mark.parametrize("missing", [0, 4, N * K], ids=["all here", "some elsewhere", "none here"])
@pytest.mark.parametrize("like_gpt_oss", [False, True])
def test_products_and_gradients_are_those_of_merged_weights(adapted, grouped, dtype, close, missing, like_gpt_oss):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape, grad=True):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)

    matrices = {name: draw(E, *shape, grad=False) for name, shape in SHAPES.items()}
    factors = {name: (draw(E, RANK, SHAPES[name][1]), draw(E, SHAPES[name][0], RANK)) for name in adapted}
    x, weights, gradient = draw(N, H), torch.rand((N, K), generator=generator, dtype=dtype).requires_grad_(), draw(N, H)
    experts = torch.randint(0, E - 1, (N, K), generator=generator)  # the last expert gets no rows
    experts.view(-1)[:missing] = -1
    given = x, experts, weights, N * K - missing
    leaves = [x, weights, *(factor for pair in factors.values() for factor in pair)]

    options = {"hidden_act": "silu", "grouped": grouped}
    if like_gpt_oss:
        options |= {"biases": (draw(E, F), draw(E, F), draw(E, H)), "clamp": ClampedGate(limit=1.0)}
        leaves += options["biases"]
    found = adapted_experts(*given, matrices, factors, SCALE, **options)
    merged = {
        name: matrix + SCALE * factors[name][1] @ factors[name][0] if name in factors else matrix
        for name, matrix in matrices.items()
    }
    expected = grouped_experts(*given, *merged.values(), **options)
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    own, those = (torch.autograd.grad(y, leaves, gradient.detach()) for y in (found, expected))
    torch.testing.assert_close(own, those, rtol=close, atol=10 * close)
