"""What is seen of routers, on a block that is written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from archon_core.contracts.packed import PackedSequences
from archon_testing.router_watch import AmbiguousRoutingError, RouterWatch, watching_routers


class Block(nn.Module):
    """Sends each token to the expert of its largest feature."""

    def __init__(self, n_experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(n_experts, n_experts, bias=False)
        nn.init.eye_(self.router.weight)
        self.experts = nn.ModuleList()

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        packed.record_experts(4, x.argmax(-1, keepdim=True).to(torch.int16))
        return x


PACKED = PackedSequences.from_lengths((2,))


def watched(*rows: list[float]) -> RouterWatch:
    with watching_routers() as watch:
        Block()(torch.tensor(rows), PACKED)
    return watch


def test_the_margin_is_that_between_the_last_chosen_and_the_first_other_expert() -> None:
    assert watched([1.0, 0.25, 0.0], [0.0, 0.5, 0.0]).margin == pytest.approx(0.5)
    assert watched([1.0, 0.25, 0.0], [0.0, 0.5, 0.49995]).margin == pytest.approx(5e-5, rel=1e-3)


def test_a_choice_by_a_hair_is_not_clear() -> None:
    assert watched([1.0, 0.25, 0.0], [0.0, 0.5, 0.0]).is_clear
    assert not watched([1.0, 0.25, 0.0], [0.0, 0.5, 0.49995]).is_clear


def test_a_watch_can_end_a_run_at_the_first_choice_by_a_hair() -> None:
    with watching_routers(stops=True) as watch:
        Block()(torch.tensor([[1.0, 0.25, 0.0]]), PACKED)
        with pytest.raises(AmbiguousRoutingError):
            Block()(torch.tensor([[0.0, 0.5, 0.49995]]), PACKED)
    assert not watch.is_clear


def test_a_reference_in_which_every_expert_gets_tokens_is_not_enough() -> None:
    everyone = watched([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert (everyone.margin, everyone.n_with_idle, everyone.is_clear) == (1.0, 0, False)


def test_padding_and_passes_without_gradients_count_for_nothing() -> None:
    watch = RouterWatch()
    router = Block().router
    watch.look(router, torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5]]), torch.tensor([[0], [-1]]), is_training=False)
    assert (watch.margin, watch.n_passes) == (1.0, 0)


def test_the_margin_of_a_router_that_ranks_by_sigmoid_scores_is_in_units_of_logits() -> None:
    watch, router = RouterWatch(), Block().router
    router.choice_bias = torch.zeros(3)
    # Near 0, the sigmoid has its largest slope.
    watch.look(router, torch.tensor([[2e-3, 1e-3, -1.0]]), torch.tensor([[0]]), is_training=True)
    assert watch.margin == pytest.approx(1e-3, rel=1e-5)
    watch.look(router, torch.tensor([[4.0, 3.999, -1.0]]), torch.tensor([[0]]), is_training=True)
    assert watch.margin < 1e-3 / 10  # where the sigmoid is flat, scores are closer together


def test_models_without_experts_are_always_clear_and_nobody_looks_afterwards() -> None:
    with watching_routers() as watch:
        nn.Linear(2, 2)(torch.zeros(1, 2))
    assert (watch.margin, watch.is_clear) == (math.inf, True)
    with pytest.raises(TypeError):
        Block()(torch.zeros(1, 3), PACKED)
