"""Layers whose tensor ranks hold parts of what they need as a whole, against the same layer on one rank: values and
gradients in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from archon_core.contracts.packed import HeadInputs
from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.norm import ProjectionRMSNorm
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_testing.worlds import run_world

T, H, V, RANKS = 6, 8, 12, 2


def part(x: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    return x.detach().chunk(RANKS, dim)[rank].clone().requires_grad_()


def differences() -> list[tuple[str, float]]:
    """(what, largest difference of this rank's part)."""
    parallel = TensorParallel(dist.group.WORLD, dist.get_rank(), RANKS)
    return [*norm_differences(parallel), *head_differences(parallel)]


def norm_differences(parallel: TensorParallel) -> Iterator[tuple[str, float]]:
    torch.manual_seed(0)
    whole, own = ProjectionRMSNorm(H, 1e-6).double(), ProjectionRMSNorm(H, 1e-6).double()
    x, upstream = torch.randn(2, T, H, dtype=torch.float64)
    x.requires_grad_()
    torch.nn.init.normal_(whole.weight)
    own.weight, own.parallel = torch.nn.Parameter(part(whole.weight, 0, parallel.rank)), parallel
    own_x = part(x, 1, parallel.rank)
    result, expected = own(own_x), whole(x)
    result.backward(upstream.chunk(RANKS, 1)[parallel.rank])
    expected.backward(upstream)
    for what, found, right, dim in (
        ("normalised", result, expected, 1),
        ("gradient of x", own_x.grad, x.grad, 1),
        ("gradient of the weight", own.weight.grad, whole.weight.grad, 0),
    ):
        yield what, float((found - right.chunk(RANKS, dim)[parallel.rank]).abs().max())


def head_differences(parallel: TensorParallel) -> Iterator[tuple[str, float]]:
    torch.manual_seed(1)
    inputs = HeadInputs(("logprobs", "entropy", "logits"), targets=torch.arange(T) * 2 - 1, temperature=0.7)
    options = {"scale": 0.5, "softcap": 1.5}
    whole, own = LanguageModelHead(H, V, **options), LanguageModelHead(H, V, **options)
    hidden = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    whole.weight = torch.nn.Parameter(torch.randn(V, H, dtype=torch.float64))
    own.weight, own.parallel = torch.nn.Parameter(part(whole.weight, 0, parallel.rank)), parallel
    own_hidden = part(hidden, 0, parallel.rank)
    results, expected = own(own_hidden, inputs), whole(hidden, inputs)
    upstream = {name: torch.randn_like(x) for name, x in expected.items()}
    sum((results[name] * upstream[name]).sum() for name in results).backward()
    sum((expected[name] * upstream[name]).sum() for name in expected).backward()
    for name in expected:
        yield name, float((results[name] - expected[name]).abs().max())
    yield "gradient of the hidden states", float((own_hidden.grad - part(hidden.grad, 0, parallel.rank)).abs().max())
    yield "gradient of the head", float((own.weight.grad - part(whole.weight.grad, 0, parallel.rank)).abs().max())


def test_norms_over_all_heads_and_capped_heads_give_the_numbers_of_one_rank() -> None:
    for found in run_world(differences, RANKS, time_limit=60):
        assert len(found) == 8
        assert not [(what, error) for what, error in found if not error < 1e-12]
