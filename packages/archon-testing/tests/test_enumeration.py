"""Which layouts `archon verify --all` looks at, and which cases each runs."""

import math
from itertools import product

import pytest

from archon_core.layout import parse_layout
from archon_testing.cases import Case, variant_case
from archon_testing.enumeration import Design, candidate_layouts

DENSE = {"tp", "cp", "pp", "tied", "critic"}


def of(axes="drct", capabilities=DENSE, world=4, **options):
    return candidate_layouts(axes, capabilities, world, **options)


def test_the_dense_layouts_of_four_ranks_are_all_products_of_the_axes():
    assert of() == [
        *("d1", "r2", "d2", "c2", "t2", "r3", "d3", "c3", "t3"),
        *("r4", "d4", "c4", "t4", "r2d2", "r2c2", "r2t2", "d2c2", "d2t2", "c2t2"),
    ]


@pytest.mark.parametrize("world", range(1, 9))
def test_each_product_of_sizes_up_to_the_world_is_there_once(world):
    sizes = product(range(1, world + 1), repeat=4)
    assert len(of(world=world)) == len(set(of(world=world))) == sum(math.prod(s) <= world for s in sizes)


def test_a_letter_needs_the_engines_axis_and_the_models_capability():
    assert of(axes="d", world=2) == ["d1", "d2"]
    assert of(capabilities={"tp"}, world=2) == ["d1", "r2", "d2", "t2"]
    assert of(capabilities=set(), world=2) == ["d1", "r2", "d2"]


def test_hybrid_layouts_cut_experts_as_no_flat_string_can():
    found = of("drcte", {"tp", "cp", "ep"}, 4)
    hybrids = [text for text in found if text.startswith("(")]
    assert found[-len(hybrids) :] == hybrids
    assert hybrids[:3] == ["(attn:d2|ffn:t2e1)", "(attn:c2|ffn:t2e1)", "(attn:t2|ffn:t1e1)"]
    assert {"(attn:c2t2|ffn:t2e2)", "(attn:t4|ffn:t2e2)"} <= set(hybrids)
    flat = {sizes_of_experts(text) for text in found if not text.startswith("(")}
    assert not flat & set(map(sizes_of_experts, hybrids))
    assert {dims.ep * dims.etp for _, dims in map(sizes_of_experts, hybrids)} == {1, 2, 3, 4}
    assert not any("(" in text for text in of("drct", world=4))


def sizes_of_experts(text):
    dims = parse_layout(f"archon:{text}").parallel_dims(moe=True)
    return (dims.dp_replicate, dims.dp_shard, dims.cp, dims.tp), dims


def test_expert_sizes_divide_the_ranks_that_share_a_copy_of_the_parameters():
    found = of("drcte", {"tp", "ep"}, 4)
    assert {"d2e2", "d4e2", "d4e4", "t2e2", "d2t2e4", "r2d2e2"} <= set(found)
    assert not any(text.startswith("r2e") or "d3e2" in text for text in found)


def test_every_schedule_is_tried_once_and_products_run_with_the_engines_own():
    found = of("dp", {"pp"}, 4, schedules=("1F1B", "ZBV"))
    assert found == ["d1", "p2", "p2-1F1B", "p2-ZBV", "d2", "p3", "d3", "p4", "d4", "p2d2"]


VARIANTS = ("untied", "tied", "critic")
DTYPES = ("float64", "float32")
COUNTS = (1, 2, 4)


def cases(number=0, variants=VARIANTS, counts=COUNTS, *, full=False):
    of_variant = {variant: variant_case({}, variant) for variant in variants}
    return Design(DTYPES, variants, counts, full).cases(of_variant, number)


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("variants", [VARIANTS, ("untied", "tied"), ("untied",)])
@pytest.mark.parametrize("counts", [COUNTS, (1, 2), (4,), (1, 2, 3, 4, 5)])
def test_on_every_layout_each_type_meets_each_variant_and_each_count(number, variants, counts):
    training = [case for case in cases(number, variants, counts) if case.check == "training"]
    assert len(training) == len(DTYPES) * max(len(variants), len(counts))
    assert {(case.dtype, case.variant) for case in training} == set(product(DTYPES, variants))
    assert {(case.dtype, case.n_mbs) for case in training} == set(product(DTYPES, counts))


def test_a_pipeline_counts_micro_batches_from_as_many_as_stages():
    of_variant = {variant: variant_case({}, variant) for variant in VARIANTS}
    design = Design(DTYPES, VARIANTS, COUNTS, full=True)
    found = design.cases(of_variant, n_stages=4)
    assert {case.n_mbs for case in found if case.check == "training"} == {4, 5, 7}
    assert {case.n_mbs for case in design.cases(of_variant) if case.check == "training"} == set(COUNTS)


def test_over_the_layouts_everything_meets_everything():
    met = {(c.dtype, c.variant, c.n_mbs) for number in range(3) for c in cases(number) if c.check == "training"}
    assert met == set(product(DTYPES, VARIANTS, COUNTS))


def test_a_full_design_is_every_product():
    training = [(c.dtype, c.variant, c.n_mbs) for c in cases(full=True) if c.check == "training"]
    assert training == list(product(DTYPES, VARIANTS, COUNTS))


def test_each_variants_initial_weights_are_looked_at_and_one_run_is_resumed():
    extra = [(case.check, case.variant) for case in cases(1) if case.check != "training"]
    assert extra == [*(("initial", variant) for variant in VARIANTS), ("resume", "tied")]
    resumed = [case.variant for case in cases(full=True) if case.check == "resume"]
    assert resumed == list(VARIANTS)
    assert {case.dtype for case in cases() if case.check != "training"} == {"float64"}


def test_weights_are_gathered_once_per_layout():
    assert [case.gathers for case in cases()].count(True) == 1


def test_extra_checks_need_no_reference_of_their_own():
    assert (
        len({repr(case.reference) for case in cases()}) == len({repr(case.reference) for case in cases(full=True)}) == 6
    )
    assert Case({}, check="resume", gathers=True).reference == Case({})
