import pytest
from torch import nn

from archon_core import parse_layout
from archon_core.contracts.packed import AttentionSettings
from archon_core.errors import LayoutError, ModelError
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_core.models.parallel_plan import HeadCounts, ParallelPlan
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.linear import Linear
from archon_engine.parallel.plan_checks import check_context_plan, check_refusals, check_tensor_plan, sharded_extents

EXTENTS = ShardedExtents({"attention heads": 12, "key and value heads": 6, "rows": 24})


def modules(**parts):
    root = nn.Module()
    for name, part in parts.items():
        root.add_module(name, part)
    return root


@pytest.mark.parametrize("layout", ["d5", "t2", "t3", "t6", "c5", "c8t3", "t6c4", "r2c3t2"])
def test_sizes_that_divide_are_allowed(layout):
    check_sizes(EXTENTS, parse_layout(f"archon:{layout}"), option="actor.backend")


@pytest.mark.parametrize(
    ("layout", "found", "largest"),
    [
        ("t4", "found t4", "is t3"),
        ("t5c2", "found t5", "is t3"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_the_largest_that_does(layout, found, largest):
    with pytest.raises(LayoutError) as refused:
        check_sizes(EXTENTS, parse_layout(f"archon:{layout}"), option="actor.backend")
    assert f"actor.backend 'archon:{layout}': {found}" in str(refused.value)
    assert str(refused.value).endswith(f"that works {largest}")


def test_a_model_without_attention_heads_is_cut_in_tokens_only():
    plan = ParallelPlan(roles={"head": "vocabulary"})
    extents = sharded_extents(modules(head=nn.Linear(4, 7)), plan)
    assert extents == ShardedExtents({}, unequal={"head outputs": 7})
    check_sizes(extents, parse_layout("archon:c5t3"), option="actor.backend")


def test_more_tensor_ranks_than_get_rows_are_refused():
    with pytest.raises(LayoutError) as refused:
        check_sizes(ShardedExtents({}, unequal={"rows": 9}), parse_layout("archon:t4"), option="actor.backend")
    assert str(refused.value) == (
        "actor.backend 'archon:t4': found t4; the model's rows (9) are too few: in parts of equal size, the last one "
        "smaller, some tensor ranks get none; the largest t below 4 that works is t3"
    )


def test_key_heads_may_be_any_number_where_the_plan_says_which_outputs_ranks_exchange():
    roles = {"q": "column", "k": "column"}
    parts = modules(q=nn.Linear(4, 24), k=nn.Linear(4, 6))
    heads = HeadCounts(query=12, key_value=3)
    exchanged = sharded_extents(parts, ParallelPlan(roles=roles, key_value=("k",), heads=heads))
    assert exchanged == ShardedExtents({"attention heads": 12, "q outputs": 24}, {"k outputs": 6})
    check_sizes(exchanged, parse_layout("archon:c4t3"), option="actor.backend")
    kept = sharded_extents(parts, ParallelPlan(roles=roles, heads=heads))
    assert kept.by_tensor_ranks == {"attention heads": 12, "key and value heads": 3, "q outputs": 24, "k outputs": 6}


def attention():
    return PackedAttention("0", AttentionSettings(1.0))


PLAN = ParallelPlan(roles={}, attention=("core",), heads=HeadCounts(4, 2))


def test_attention_that_exchanges_heads_can_be_cut():
    check_context_plan(modules(core=attention()), PLAN)


@pytest.mark.parametrize(
    ("module", "plan", "message"),
    [
        (modules(core=nn.Linear(1, 1)), PLAN, "core: Linear needs whole sequences"),
        (modules(core=attention(), other=attention()), PLAN, "other: attention that the plan's `attention` does not"),
        (modules(), PLAN, "`attention` names no module, although the model has attention heads"),
    ],
)
def test_a_plan_that_leaves_attention_on_cut_sequences_is_refused(module, plan, message):
    with pytest.raises(ModelError) as refused:
        check_context_plan(module, plan)
    assert message in str(refused.value)


def test_an_axis_that_the_plan_refuses_is_refused_with_its_reason_and_only_where_it_is_used():
    plan = ParallelPlan(roles={}, refusals={"t": "its heads are glued together; leave t out"})
    check_refusals(plan, parse_layout("archon:d4c2"), option="actor.backend")
    with pytest.raises(LayoutError, match=r"actor\.backend 'archon:t2': found t2; its heads are glued together"):
        check_refusals(plan, parse_layout("archon:t2"), option="actor.backend")


def test_replicated_weights_lie_inside_tensor_regions():
    parts = modules(block=modules(down=Linear(4, 2), up=Linear(2, 8), out=Linear(8, 4)))
    roles = {"block.down": "replicated", "block.up": "column", "block.out": "row"}
    plan = ParallelPlan(roles=roles, tensor_regions=("block",), units=("block",), blocks="block")
    check_tensor_plan(parts, plan)
    assert sharded_extents(parts, plan).by_tensor_ranks == {"block.up outputs": 8, "block.out inputs": 8}
    outside = modules(down=Linear(4, 2))
    with pytest.raises(ModelError, match="down: role 'replicated' outside every tensor region"):
        check_tensor_plan(outside, ParallelPlan(roles={"down": "replicated"}, units=("down",), blocks="down"))
