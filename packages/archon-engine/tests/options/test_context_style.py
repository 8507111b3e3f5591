"""How context ranks share attention: the choice for every number of heads, the recorded decision, and refusals."""

import pytest

from archon_core import parse_layout
from archon_core.contracts.decisions import Decision
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.preview import EngineOutline
from archon_core.errors import ConfigError
from archon_engine.assembly.context import ContextPlan, context_decisions, neighbours_per_machine
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.options.combinations import refuse_when_strict
from archon_engine.options.context_style import (
    ContextSizes,
    ContextSplit,
    padding_decision,
    permits,
    split_context,
    style_decisions,
)
from archon_engine.options.preview import preview

OPTION = "actor.archon.cp_style"


def split(style, *sizes):
    return split_context(style, ContextSizes(*sizes), option=OPTION)


def decision(style, *sizes):
    found = list(style_decisions(style, ContextSizes(*sizes), split(style, *sizes), option=OPTION))
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("style", "sizes", "expected"),
    [
        ("auto", (4, 1, 8), ContextSplit(4, 1)),
        ("auto", (8, 1, 4), ContextSplit(4, 2)),
        ("auto", (8, 2, 4), ContextSplit(2, 4)),
        ("auto", (3, 1, 4), ContextSplit(1, 3)),
        ("auto", (6, 1, 4), ContextSplit(2, 3)),
        ("auto", (8, 1, 1), ContextSplit(1, 8)),
        ("auto", (5, 1, 0), ContextSplit(5, 1)),  # a model without attention
        ("gather", (4, 1, 8), ContextSplit(1, 4)),
        ("ulysses", (4, 2, 8), ContextSplit(4, 1)),
        ("hybrid", (4, 1, 8), ContextSplit(2, 2)),
        ("hybrid", (2, 1, 8), ContextSplit(1, 2)),
        ("hybrid", (12, 1, 8), ContextSplit(4, 3)),
        # Groups that exchange heads lie within a machine: of 8 ranks, with 2 tensor ranks each, of 4 ranks.
        ("hybrid", (32, 1, 64, 8), ContextSplit(8, 4)),
        ("hybrid", (16, 2, 64, 8), ContextSplit(4, 4)),
        ("hybrid", (4, 8, 64, 8), ContextSplit(1, 4)),
        ("auto", (16, 1, 64, 8), ContextSplit(16, 1)),
        ("auto", (16, 1, 8, 4), ContextSplit(4, 4)),
    ],
)
def test_context_ranks_are_split_by_heads_and_machines(style, sizes, expected):
    assert split(style, *sizes) == expected
    assert expected.heads * expected.groups == sizes[0]


def test_auto_finds_a_split_for_every_number_of_ranks_and_heads():
    for context in range(1, 33):
        for heads in range(1, 33):
            for tensor in (t for t in (1, 2, 4) if heads % t == 0):
                found = split("auto", context, tensor, heads)
                assert found.heads * found.groups == context
                assert heads % (found.heads * tensor) == 0
                assert (found.groups == 1) == permits("ulysses", ContextSizes(context, tensor, heads))


def test_too_few_heads_for_ulysses_are_refused_with_what_is_allowed_and_what_to_do():
    with pytest.raises(ConfigError) as refused:
        split("ulysses", 8, 2, 8)
    assert str(refused.value) == (
        "actor.archon.cp_style: found ulysses with c8; it divides heads among context ranks, so c must divide the "
        "model's 8 attention heads, of which each of 2 tensor ranks has 4: 1, 2, 4; write auto, gather or hybrid, "
        "which allow any c, or reduce c"
    )


def test_the_choice_of_auto_is_a_decision_that_strict_allows():
    found = decision("auto", 8, 1, 4)
    assert (found.requested, found.effective) == ("auto", "hybrid: heads over 4 ranks, keys and values over 2")
    assert found.reason == "4 is the largest part of c8 that divides 4 attention heads"
    assert decision("auto", 4, 2, 8).reason == (
        "c4 divides 8 attention heads, of which each of 2 tensor ranks has 4, so context ranks exchange heads"
    )
    assert decision("hybrid", 4, 1, 8).reason == "2 is the largest proper part of c4 that divides 8 attention heads"
    assert decision("auto", 3, 1, 4).effective == "gather"
    strict = ArchonEngineConfig(archon=ArchonOptions(strict=True))
    assert refuse_when_strict(strict, [found], role="actor") is None


def test_a_hybrid_without_groups_is_a_change_that_strict_refuses():
    found = decision("hybrid", 4, 8, 64, 8)
    assert (found.requested, found.effective) == ("hybrid", "gather")
    assert found.reason == (
        "no proper part of c4 above 1 divides 64 attention heads, of which each of 8 tensor ranks has 8 and keeps "
        "groups within a machine (every 8 ranks, counted from the first, are on one)"
    )
    strict = ArchonEngineConfig(archon=ArchonOptions(strict=True, cp_style="hybrid"))
    assert "found hybrid, would use gather" in refuse_when_strict(strict, [found], role="actor")


def test_a_style_that_is_in_effect_as_written_needs_no_decision():
    assert decision("gather", 4, 1, 8) is None
    assert decision("ulysses", 4, 1, 8) is None
    assert decision("gather", 1, 1, 8) is None


def test_packs_are_padded_for_two_blocks_per_group():
    assert ContextSplit(4, 1).multiple() == 4
    assert ContextSplit(1, 3).multiple() == 6
    assert ContextSplit(2, 3).multiple() == 6
    assert ContextSplit(3, 2).multiple() == 12
    assert ContextSplit(1, 3).multiple(in_order=True) == 3


ALIGN = "actor.batch_align_to"
MULTIPLE = "so the padded length must be a multiple of batch_align_to and of these"
BY_HEADS = f"tokens are sharded over 4 ranks (cp x tp), {MULTIPLE}"
GATHERED = (
    "tokens are sharded over 12 ranks (cp x tp), and 3 groups of context ranks gather keys and values, of which each "
    f"holds two equal blocks of tokens, {MULTIPLE}"
)


@pytest.mark.parametrize(
    ("asked", "style", "sizes", "expected"),
    [
        (1, "auto", (4, 1, 8), None),
        (12, "auto", (4, 1, 8), None),
        (6, "auto", (4, 1, 8), ("12", BY_HEADS)),
        (8, "gather", (3, 4, 16), ("24", "tokens are sharded over 12 ranks (cp x tp), " + MULTIPLE)),
        (9, "gather", (3, 1, 16), ("18", GATHERED.replace("12 ranks", "3 ranks"))),
    ],
)
def test_one_decision_about_padding_counts_ranks_and_groups(asked, style, sizes, expected):
    plan = ContextPlan(split(style, *sizes), sizes=ContextSizes(*sizes))
    config = ArchonEngineConfig(batch_align_to=asked, archon=ArchonOptions(cp_style=style, strict=True))
    found = [one for one in context_decisions(plan, config, role="actor") if one.option == ALIGN]
    assert found == ([] if expected is None else [Decision(ALIGN, str(asked), *expected)])
    refusal = refuse_when_strict(config, found, role="actor")
    assert refusal is None if expected is None else f"{ALIGN}: found {asked}, would use {expected[0]}" in refusal


@pytest.mark.parametrize(
    ("layout", "asked", "n_heads", "capabilities", "expected"),
    [
        ("t4", 6, None, {"tp"}, "12"),  # heads matter to context ranks alone
        ("t4", 12, None, {"tp"}, None),
        ("c3", 9, 4, {"cp", "tree"}, "18"),
        ("c3", 9, 4, {"cp"}, None),  # layers may be recurrent
        ("c3", 4, 3, {"cp"}, "12"),
        ("c3", 9, None, {"cp", "tree"}, None),
    ],
)
def test_a_dry_run_refuses_a_padding_that_strict_will_refuse_for_certain(
    layout, asked, n_heads, capabilities, expected
):
    config = ArchonEngineConfig(batch_align_to=asked, archon=ArchonOptions(strict=True, enable_compile=False))
    model = ModelSpec(name="tiny", target="json:loads", model_types=("tiny",), capabilities=frozenset(capabilities))
    entries = {} if n_heads is None else {"num_attention_heads": n_heads}
    outline = EngineOutline(config, "actor", frozenset(), parse_layout(f"archon:{layout}"), model, entries=entries)
    found = [problem for problem in preview(outline).problems if ALIGN in problem]
    if expected is None:
        assert found == []
    else:
        [problem] = found
        assert f"{ALIGN}: found {asked}, would use {expected}" in problem


def test_context_ranks_with_recurrent_layers_need_no_blocks():
    sizes = ContextSizes(3, 1, 4)
    both = [
        padding_decision(3, sizes, ContextSplit(1, 3), in_order=in_order, option=ALIGN) for in_order in (False, True)
    ]
    assert [one and one.effective for one in both] == ["6", None]


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ("", None),
        ("aaaaaaaa", None),
        ("aaaabbbb", 4),
        ("aaaabbbbbbbb", 4),  # beside four ranks of another role on the first machine
        ("aaaaaabbbb", 2),
        ("abababab", 1),
        ("aabbaabb", 2),
    ],
)
def test_groups_of_neighbours_lie_within_a_machine(machines, expected):
    found = neighbours_per_machine(machines)
    assert found == expected
    groups = [machines[start : start + found] for start in range(0, len(machines), found)] if found else []
    assert all(len(set(group)) == 1 for group in groups)
