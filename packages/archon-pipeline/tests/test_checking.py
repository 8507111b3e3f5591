"""Action lists that cannot be executed are refused; the message says what was found, what is allowed, and the fix."""

from __future__ import annotations

import pytest

from archon_core.contracts.pipeline import Action
from archon_core.errors import PluginError
from archon_pipeline.checking import check_actions


def check(*ranks: str, n_micro_batches: int = 2) -> None:
    actions = tuple(tuple(Action.parse(text) for text in rank.split()) for rank in ranks)
    check_actions(actions, (0, 1), n_micro_batches, schedule="mine")


def test_whole_and_split_backward_passes_may_be_mixed() -> None:
    check("0F0 0F1 0I0 0B1 0W0", "1F0 1B0 1F1 1I1 1W1")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (("0F0 0F1 0B0 0B1",), "found actions of 1 ranks; allowed is one list for each of 2; return one per rank"),
        (("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 2B1"), "found 2B1 on rank 1; allowed are stages 0 to 1"),
        (("0F0 0F1 0B0 0B2", "1F0 1B0 1F1 1B1"), "found 0B2 on rank 0; allowed are micro-batches 0 to 1"),
        (("0F0 0F1 0B0 0B1 1F0", "1B0 1F1 1B1"), "found 1F0 on rank 0; allowed there are stages 0; move it to rank 1"),
        (("0F0 0F1 0B0", "1F0 1B0 1F1 1B1"), "found 0F1 for micro-batch 1 on stage 0; .* add the missing actions"),
        (("0F0 0F1 0B0 0B1", "1F0 1B0"), "found nothing for micro-batch 1 on stage 1"),
        (("0F0 0F1 0B0 0B1 0B1", "1F0 1B0 1F1 1B1"), "found 0F1 0B1 0B1 for micro-batch 1 on stage 0"),
        (
            ("0F0 0F1 0B0 0B1 0W1", "1F0 1B0 1F1 1B1"),
            "found 0F1 0B1 0W1 for .*; allowed is F once, then B once, or I and W",
        ),
        (("0F0 0F1 0I0 0B1", "1F0 1B0 1F1 1B1"), "found 0F0 0I0 for micro-batch 0 on stage 0"),
        (("0F0 0F1 0B0 0B1", "1B0 1F0 1F1 1B1"), "found 1B0 before 1F0; allowed is F first"),
        (("0F0 0F1 0W0 0I0 0B1", "1F0 1B0 1F1 1B1"), "found 0W0 before 0I0; allowed is I first"),
        (("0F0 0B0 0F1 0B1", "1F1 1F0 1B0 1B1"), "found a deadlock .*; move these actions back"),
    ],
)
def test_lists_that_cannot_be_executed_are_refused(ranks: tuple[str, ...], message: str) -> None:
    with pytest.raises(PluginError, match=f"^mine: .*{message}"):
        check(*ranks)
