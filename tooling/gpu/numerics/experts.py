"""Grouped experts on the device against a loop over experts in float64.

Legend: N rows, K experts per row, E experts, H hidden size, F intermediate size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from archon_moe.kernels.choice import choose_implementation
from archon_moe.kernels.operation import grouped_experts
from gpu.numerics.comparing import relative_error, worst
from gpu.numerics.tolerances import BF16_KERNEL, FP32
from gpu.records import Check, Context, Outcome, Skipped

ROWS, CHOICES, EXPERTS, HIDDEN, INTERMEDIATE = 515, 2, 8, 128, 96

Load = Literal["all", "some", "one", "none"]
"""Every choice is an expert's; some are -1, as for experts on other ranks; one expert gets all rows; there is none."""


def checks(context: Context) -> Iterator[Check]:
    """Both implementations in both types, with even and uneven loads."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for grouped in (False, True):
            way = "grouped_mm" if grouped else "loop"
            loads: tuple[Load, ...] = ("all", "some", "one", "none")
            for load in loads:
                yield Check(f"experts-{way}-{name}-{load}", partial(run, context, dtype, grouped, load))


def run(context: Context, dtype: torch.dtype, grouped: bool, load: Load) -> Outcome:
    """Outputs and the gradients of rows, choice weights and all experts' matrices."""
    if grouped:
        chosen = choose_implementation(context.device, dtype, None, (HIDDEN, INTERMEDIATE))
        if chosen.name != "grouped_mm" and context.on_gpu:
            raise Skipped(chosen.reason)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(context.device, dtype).requires_grad_()

    x = draw(ROWS, HIDDEN)
    matrices = (
        draw(EXPERTS, INTERMEDIATE, HIDDEN, scale=HIDDEN**-0.5),
        draw(EXPERTS, INTERMEDIATE, HIDDEN, scale=HIDDEN**-0.5),
        draw(EXPERTS, HIDDEN, INTERMEDIATE, scale=INTERMEDIATE**-0.5),
    )
    weights = torch.rand(ROWS, CHOICES, generator=generator).to(context.device).requires_grad_()
    chosen_experts = _choices(load, generator).to(context.device)
    n_pairs = int((chosen_experts >= 0).sum())
    out = grouped_experts(x, chosen_experts, weights, n_pairs, *matrices, hidden_act="silu", grouped=grouped)
    grad = torch.randn(ROWS, HIDDEN, generator=generator).to(context.device, dtype)
    inputs = (x, weights, *matrices)
    found = torch.autograd.grad(out, inputs, grad)
    exact = tuple(value.detach().cpu().double().requires_grad_() for value in inputs)
    expected = formula(*exact, chosen_experts.cpu())
    exact_found = torch.autograd.grad(expected, exact, grad.cpu().double())
    measured = {
        "output": relative_error(out, expected),
        "gradients": worst(map(relative_error, found, exact_found)),
    }
    return Outcome(measured, dict.fromkeys(measured, FP32 if dtype == torch.float32 else BF16_KERNEL))


def _choices(load: Load, generator: torch.Generator) -> Tensor:
    if load == "none":
        return torch.full((ROWS, CHOICES), -1)
    if load == "one":
        choices = torch.full((ROWS, CHOICES), -1)
        choices[:, 0] = 3
        return choices
    choices = torch.rand(ROWS, EXPERTS, generator=generator).topk(CHOICES, dim=-1).indices
    if load == "some":
        choices = torch.where(choices >= EXPERTS // 2, -1, choices)
    return choices


def formula(x: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor, experts: Tensor) -> Tensor:
    """sum_k w_k down_k(silu(gate_k x) * up_k x)."""
    out = torch.zeros_like(x)
    for expert in range(gate.shape[0]):
        rows, places = (experts == expert).nonzero(as_tuple=True)
        hidden = torch.nn.functional.silu(x[rows] @ gate[expert].T) * (x[rows] @ up[expert].T)
        out = out.index_add(0, rows, (hidden @ down[expert].T) * weights[rows, places][:, None])
    return out + 0.0 * sum(value.sum() for value in (x, weights, gate, up, down))
