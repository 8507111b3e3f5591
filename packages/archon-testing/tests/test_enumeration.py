"""Which layouts `archon verify --all` looks at, and which cases each runs."""

import math
from itertools import product

import pytest

from archon_core.layout import parse_layout
from archon_testing.cases import Case, variant_case
from archon_testing.enumeration import Design, candidate_layouts
from archon_testing.requested import read_layout, resume_layouts

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


ELSEWHERE = [("archon:p2", "ZBV"), ("archon:d1", None)]


def cases(number=0, variants=VARIANTS, counts=COUNTS, *, full=False, dtypes=DTYPES, **options):
    of_variant = {variant: variant_case({}, variant) for variant in variants}
    return Design(dtypes, variants, counts, full, "float64").cases(of_variant, number, **options)


def runs(found, dtype="float64"):
    return [case for case in found if case.check == "training" and case.dtype == dtype]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("variants", [VARIANTS, ("untied", "tied"), ("untied",)])
@pytest.mark.parametrize("counts", [COUNTS, (1, 2), (4,), (1, 2, 3, 4, 5)])
def test_on_every_layout_float64_meets_each_variant_and_each_count_and_float32_one_of_each(number, variants, counts):
    found = cases(number, variants, counts)
    most = max(len(variants), len(counts))
    assert len(runs(found)) == most + (most == 1)
    assert {case.variant for case in runs(found)} == set(variants)
    assert {case.n_mbs for case in runs(found)} == set(counts)
    assert len(runs(found, "float32")) == 1


def test_a_pipeline_counts_micro_batches_from_as_many_as_stages():
    of_variant = {variant: variant_case({}, variant) for variant in VARIANTS}
    design = Design(DTYPES, VARIANTS, COUNTS, full=True)
    found = design.cases(of_variant, n_stages=4)
    assert {case.n_mbs for case in found if case.check == "training"} == {4, 5, 7}
    assert {case.n_mbs for case in design.cases(of_variant) if case.check == "training"} == set(COUNTS)


def test_over_the_layouts_everything_meets_everything():
    met = {(c.dtype, c.variant, c.n_mbs) for number in range(9) for c in cases(number) if c.check == "training"}
    assert met == set(product(DTYPES, VARIANTS, COUNTS))
    recomputed = {(c.variant, c.recompute) for number in range(6) for c in cases(number) if c.recompute != "none"}
    assert recomputed == set(product(VARIANTS, ("full", "selective")))


def test_a_full_design_is_every_product():
    training = [(c.dtype, c.variant, c.n_mbs) for c in cases(full=True) if c.check == "training"]
    assert training == list(product(DTYPES, VARIANTS, COUNTS))


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(("variants", "counts"), [(VARIANTS, COUNTS), (("untied",), (4,)), (("tied",), (2, 4))])
def test_on_every_layout_one_run_recomputes_and_others_do_not(number, variants, counts):
    found = runs(cases(number, variants, counts))
    assert len([case for case in found if case.recompute != "none"]) == 1
    assert any(case.recompute == "none" for case in found)
    full = runs(cases(number, variants, counts, full=True))
    assert {case.variant for case in full if case.recompute != "none"} == set(variants)


def test_each_further_check_is_made_for_one_variant_or_in_a_full_design_for_every_one():
    extra = [(case.check, case.variant) for case in cases(1) if case.check != "training"]
    assert extra == [("initial", "tied"), ("precision", "critic"), ("resume", "tied")]
    for check in ("initial", "precision", "resume"):
        assert [case.variant for case in cases(full=True) if case.check == check] == list(VARIANTS)
    assert {case.dtype for case in cases() if case.check != "training"} == {"float64"}
    assert {case.compute_dtype for case in cases() if case.check == "precision"} == {"bfloat16"}


def test_runs_are_resumed_on_another_layout_and_last_on_one_process():
    def targets(**options):
        return [(c.resume_on, c.resume_schedule) for c in cases(2, ("untied",), **options) if c.check == "resume"]

    assert targets() == [(None, None)]
    assert targets(resume_on=ELSEWHERE) == ELSEWHERE
    assert targets(resume_on=ELSEWHERE, full=True) == [(None, None), *ELSEWHERE]
    assert targets(resume_on=ELSEWHERE[1:]) == [(None, None), *ELSEWHERE[1:]]
    assert cases(resume_on=ELSEWHERE)[-1].last.layout == "archon:d1"


def test_the_step_in_bfloat16_always_has_gradients_to_sum():
    def counts(**options):
        return [case.n_mbs for case in cases(**options) if case.check == "precision"]

    assert (counts(sums_gradients=True), counts(), counts(n_stages=4)) == ([1], [2], [5])
    without = Design(DTYPES, VARIANTS, COUNTS, full=False).cases({v: variant_case({}, v) for v in VARIANTS})
    assert all(case.check != "precision" for case in without)
    assert [case.check for case in cases(dtypes=())] == ["precision"]


@pytest.mark.parametrize("number", range(3))
def test_weights_are_exported_once_per_layout_in_turn(number):
    assert [case.variant for case in cases(number) if case.exports] == [VARIANTS[number]]
    assert {case.variant for case in cases(number, full=True) if case.exports} == set(VARIANTS)


def test_further_checks_need_no_reference_of_their_own():
    # float32 takes one case of a layout.
    assert len({repr(case.reference) for case in cases(resume_on=ELSEWHERE)}) == 4
    assert len({repr(case.reference) for case in cases(full=True)}) == 6
    resumed = Case({}, check="resume", resume_on="archon:p2", resume_schedule="ZBV")
    assert resumed.reference == Case({}, exports=True, recompute="full").reference == Case({})


def test_a_run_is_resumed_along_other_axes_on_as_many_ranks():
    layouts = [read_layout(text) for text in ("d2", "t2", "c2", "d4", "t4", "c4", "d2t2", "c2t2")]

    def others(text, number):
        return [layout for layout, _ in resume_layouts(read_layout(text), layouts, number)]

    assert [others("d2", number) for number in range(2)] == [["archon:t2", "archon:d1"], ["archon:c2", "archon:d1"]]
    assert [others("d2t2", number)[0] for number in range(2)] == ["archon:c4", "archon:c4"]
    assert others("d1", 0) == []
    assert others("d8", 0) == ["archon:d1"]
