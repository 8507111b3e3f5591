"""Distillation, alone and beside a policy loss, has the loss, gradients, norm and weights of one process on every
layout of actor and teacher, in float64. The teacher has another size than the actor, and is offloaded between uses."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from archon_rl.losses.distillation import DistillationTerm
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from distillation_numbers import compare, compare_all, make_engine, numbers


def of_layouts(actor: str, teacher: str) -> dict[str, Any]:
    return numbers(partial(make_engine, "actor", actor), lambda _: make_engine("teacher", teacher, offload=True))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found = of_layouts("d1", "d1")
    for _, scalars, _, _ in found.values():
        assert abs(scalars["distill_loss"]) > 1e-3
    return found


LAYOUTS = [("d2", "t2"), ("t2", "d2"), ("c2", "p2"), ("p2", "c2")]


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize(("actor", "teacher"), LAYOUTS, ids=lambda layout: layout)
def test_distillation_has_the_numbers_of_one_process(expected, actor, teacher):
    compare_all(run_world(of_layouts, 2, (actor, teacher), time_limit=300), expected)


def test_the_comparison_notices_a_divisor_per_micro_batch(expected, monkeypatch):
    """AReaL divides the KL by the tokens of each micro-batch."""

    def divided_here(self, outputs, micro_batch):
        result = term(self, outputs, micro_batch)
        return type(result)(result.values / micro_batch.token_fields["loss_mask"].sum(), result.metrics)

    term = DistillationTerm.__call__
    monkeypatch.setattr(DistillationTerm, "__call__", divided_here)
    with pytest.raises(AssertionError):
        compare(of_layouts("d1", "d1"), expected)
