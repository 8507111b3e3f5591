"""Planned bytes of a publication equal what real trainers gather on the first rank."""

import sys
from pathlib import Path

import pytest

from archon_plan.publication import publication_bytes
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from counted_steps import Case, run_publications

TIED = {"tie_word_embeddings": True}
ODD = {"hidden_size": 33, "vocab_size": 131, "intermediate_size": 50}

WORLDS = (
    pytest.param(
        (
            Case("d2", changes=ODD, dtype="bfloat16"),
            Case("p2", n_mbs=4, changes=TIED, options={"pp_schedule": "ZBV"}),
        ),
        id="two ranks",
    ),
    pytest.param(
        (
            Case("d2t2", changes={**ODD, **TIED}),
            Case("r2t2", "qwen3_moe"),
            Case("(attn:d2t2|ffn:d1e2t2)", "qwen3_moe"),
            Case("p2d2e2", "qwen3_moe", n_mbs=4, options={"pp_schedule": "1F1B"}),
        ),
        marks=pytest.mark.wide,
        id="four ranks",
    ),
)


@pytest.mark.parametrize("cases", WORLDS)
def test_the_first_rank_gathers_the_planned_bytes(cases):
    ranks = run_world(run_publications, cases[0].n_ranks, (list(cases),))
    for place, case in enumerate(cases):
        own = [rank[place] for rank in ranks]
        planned = publication_bytes(own[0].setting, groups=3)
        assert [rank.assembled for rank in own] == [planned.whole, *[0] * (case.n_ranks - 1)], case
        assert planned.sent == 3 * planned.whole
        messages = [one for rank in own for one in rank.sent if not one.inside]
        assert {one.collective for one in messages} == {"send"}, case
        assert sum(one.bytes for one in messages) == planned.gathered, case
