"""Muon on whole matrices. Sharded ones are compared with these in tests/test_engine_over_ranks.py."""

import math

import pytest
import torch

from archon_engine.optimizer.muon import Muon, balance, orthogonalise


def matrix(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16), (1, 5)])
def test_the_direction_keeps_singular_vectors_and_brings_all_singular_values_near_one(shape):
    u, _, vt = torch.linalg.svd(matrix(*shape), full_matrices=False)
    values = torch.linspace(0.3, 1.0, len(vt), dtype=torch.float64)
    direction = orthogonalise(u * values @ vt * 7)
    inner = u.T @ direction @ vt.T
    torch.testing.assert_close(inner, torch.diag(inner.diag()), rtol=0, atol=1e-12)
    # The published coefficients give up convergence to exactly 1 for speed.
    assert inner.diag().min() > 0.6
    assert inner.diag().max() < 1.3


def test_a_stack_of_matrices_takes_steps_as_each_of_them_does():
    stack = torch.nn.Parameter(matrix(3, 12, 20))
    alone = [torch.nn.Parameter(part.clone()) for part in stack.detach()]
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    both = Muon([stack], **options), Muon(alone, **options)
    for step in range(2):
        stack.grad = matrix(3, 12, 20, seed=step + 1)
        for part, grad in zip(alone, stack.grad, strict=True):
            part.grad = grad
        for muon in both:
            muon.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), rtol=0, atol=1e-12)


def test_a_zero_gradient_gives_a_zero_direction():
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_steps_are_those_of_torch_up_to_its_rounding_to_bfloat16():
    ours, theirs = (torch.nn.Parameter(matrix(12, 20, dtype=torch.float32)) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    first = Muon([ours], **options)
    second = torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        before = theirs.detach().clone()
        for parameter in (ours, theirs):
            parameter.grad = matrix(12, 20, seed=step + 1, dtype=torch.float32)
        first.step()
        second.step()
        moved = (theirs.detach() - before).norm()
        assert (ours - theirs).norm() < 0.02 * moved * (step + 1)


def test_updates_have_the_size_that_adamw_has():
    parameter = torch.nn.Parameter(torch.zeros(64, 256, dtype=torch.float64))
    parameter.grad = matrix(64, 256)
    Muon([parameter], lr=0.5, weight_decay=0.0, momentum=0.9).step()
    # 0.2 is the root mean square of AdamW's updates (arXiv:2502.16982).
    assert parameter.detach().norm() / math.sqrt(64 * 256) == pytest.approx(0.5 * 0.2, rel=0.3)


def test_matrices_are_dealt_evenly_and_each_once():
    owners = balance([8, 1, 1, 8, 4, 4, 1, 1], 3)
    loads = [
        sum(cost for cost, owner in zip([8, 1, 1, 8, 4, 4, 1, 1], owners, strict=True) if owner == r) for r in range(3)
    ]
    assert sum(loads) == 28
    assert max(loads) - min(loads) <= 2
    assert balance([], 4) == []
