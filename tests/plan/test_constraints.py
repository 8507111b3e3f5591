"""Violated constraints of a layout, all at once, and the nearest layouts that work."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.errors import ArchonError
from archon_core.layout import ParallelDims, parse_layout
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_core.plugins import registry
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.constraints import check_engine
from archon_plan.layouts import nearest_layouts, write_layout
from archon_plan.models import find_model
from archon_plan.parts import EngineRequest
from archon_plan.violations import Check

MOE, DENSE = "qwen3-30b-a3b", "qwen3-8b"


def asked(layout: str, model: str = MOE, *, explicit: frozenset[str] = frozenset(), **options: Any) -> EngineRequest:
    config = ArchonEngineConfig(
        gradient_checkpointing=True,
        mb_spec=MicroBatchSpec(max_tokens_per_mb=8192),
        archon=ArchonOptions(**options),
    )
    return EngineRequest("actor", layout, find_model(model), config, explicit=explicit)


def check(request: EngineRequest) -> Check:
    return check_engine(request, registry())


def texts(request: EngineRequest) -> list[str]:
    return [str(violation) for violation in check(request).violations]


def nearest(request: EngineRequest) -> tuple[str, ...]:
    return nearest_layouts(request, check(request), registry())


@pytest.mark.parametrize(
    ("layout", "model", "expected"),
    [
        ("archon:d4t64", MOE, r"t64 on attention heads \(32\).*a t that divides them: 1, 2, 4, 8, 16, 32"),
        ("archon:d6e6", MOE, r"e6 on 128 experts.*: 1, 2, 4, 8, 16, 32, 64, 128"),
        ("archon:(attn:d5|ffn:t5)", MOE, r"etp 5 on the width inside an expert \(768\)"),
        ("archon:d4e4", DENSE, r"e4 for experts, and model qwen3 has none"),
        ("archon:(attn:d4|ffn:t4)", DENSE, r"t4 for experts, and model qwen3 has none"),
        ("archon:d2e3", MOE, r"e3, which needs a multiple of 3 ranks.*an e that divides d x c x t"),
        ("archon:p26", MOE, r"p26, which with Interleaved1F1B makes 52 stages of 48 layers.*at most p25"),
        ("archon:d4x2", MOE, r"the unknown letter 'x'"),
        ("archon:d4d2", MOE, r"'d' a second time; allowed: each letter once"),
        ("", MOE, r"an empty text"),
        ("archn:d4", MOE, r"the unknown backend 'archn'; did you mean 'archon'"),
        ("sglang:d4t2", MOE, r"sglang, which generates; allowed: engines that train: archon"),
        ("sglang:d4p2", MOE, r"pipeline parallelism \(p2\), which sglang does not have"),
        ("megatron:d4", MOE, r"megatron"),
        ("fsdp:d4p2", DENSE, r"pipeline parallelism \(p2\), which fsdp does not have"),
    ],
)
def test_a_wrong_layout_is_found_with_what_is_allowed(layout: str, model: str, expected: str) -> None:
    found = texts(asked(layout, model))
    assert any(re.search(expected, text) for text in found), found


def test_all_violations_are_found_at_once() -> None:
    request = asked("archon:d2t5c3e7p10", pp_schedule="1F1B", ac_mode="nothing", cp_style="ulysses")
    words = (
        "ac_mode: found 'nothing'",
        "e7, which needs",
        "t5 on",
        "ulysses with c3",
        "32 attention heads: 1, 2, 4",
        "e7 on 128",
    )
    found = texts(request)
    assert [word for word in words if not any(word in text for text in found)] == []


@pytest.mark.parametrize(
    ("layout", "allowed"),
    [("archon:c3d2", "must divide the model's 32 attention heads: 1, 2, 4, 8, 16, 32"), ("archon:t8c8", "1, 2, 4;")],
)
def test_a_number_of_heads_limits_context_ranks_only_if_they_exchange_heads(layout: str, allowed: str) -> None:
    assert texts(asked(layout)) == texts(asked(layout, cp_style="gather")) == []
    [found] = texts(asked(layout, cp_style="ulysses"))
    assert "actor.archon.cp_style: found ulysses with c" in found
    assert allowed in found
    # Only layouts in which c divides the heads are near one that must exchange them.
    assert all("c3" not in text and "t8c8" not in text for text in nearest(asked(layout, cp_style="ulysses")))


def test_an_unknown_schedule_and_a_wrong_size_are_both_found() -> None:
    found = texts(asked("archon:p2t5", pp_schedule="2F2B"))
    assert any("actor.archon.pp_schedule" in text and "2F2B" in text for text in found), found
    assert any("t5 on" in text for text in found), found


def test_options_that_a_schedule_excludes_are_violations_only_if_written() -> None:
    options = {"pp_schedule": "ZBVZeroBubble", "enable_compile": True}
    assert texts(asked("archon:p2d2", **options)) == []
    written = frozenset({"actor.archon.enable_compile"})
    assert "set archon.enable_compile=false" in "".join(texts(asked("archon:p2d2", explicit=written, **options)))


def test_stage_lengths_that_do_not_fit_name_their_option() -> None:
    found = check(asked("archon:p2d2", pp_schedule="1F1B", pp_layers_per_stage=5)).violations
    assert [violation.option for violation in found] == ["actor.archon.pp_layers_per_stage"]


def test_a_model_of_an_unknown_type_is_a_violation() -> None:
    request = asked("archon:d2")
    model = replace(request.model, entries={"model_type": "gpt17"})
    assert "gpt17" in "".join(texts(replace(request, model=model)))


def test_a_missing_size_of_the_model_is_a_violation() -> None:
    request = asked("archon:d2")
    entries = {name: value for name, value in request.model.entries.items() if name != "hidden_size"}
    assert "hidden_size: found None" in "".join(texts(replace(request, model=replace(request.model, entries=entries))))


def test_a_layout_without_faults_violates_nothing() -> None:
    for layout in ("archon:d4", "archon:p4t2c2e4", "archon:(attn:d1p4t2c2|ffn:d1p4t1e4)", "archon:r2d2t4e8"):
        assert texts(asked(layout)) == [], layout


def check_as_a_run_does(layout: str, *, heads: int, mlp: int, layers: int, moe: bool) -> ParallelDims:
    """The checks of core and of the packages that a run reaches. Raises LayoutError."""
    parsed = parse_layout(layout)
    dims = parsed.parallel_dims(moe=moe)
    check_sizes(ShardedExtents({"heads": heads, "mlp": mlp}), parsed, option="actor.backend")
    if moe:
        assert 128 % dims.ep == 0
        assert 768 % dims.etp == 0
    assert 2 * dims.pp <= layers + 2 or dims.pp == 1
    return dims


@pytest.mark.parametrize(
    "layout",
    ["archon:d4t64", "archon:t5d3", "archon:p64d2", "archon:d3e7t3", "archon:c3t8d2", "archon:d6e6", "archon:d12e5"],
)
def test_the_nearest_layouts_have_as_many_ranks_and_pass_the_checks_of_a_run(layout: str) -> None:
    request = asked(layout)
    found = nearest(request)
    assert found
    wanted = check(request).layout
    assert wanted is not None
    for text in found:
        assert check(replace(request, layout=text)).violations == ()
        dims = check_as_a_run_does(text, heads=32, mlp=2048 * 2, layers=48, moe=True)
        changes_ranks = any(text in violation.suggestions for violation in check(request).violations)
        assert dims.world_size == wanted.world_size or changes_ranks


def test_the_nearest_layout_changes_the_wrong_axis_only() -> None:
    assert nearest(asked("archon:d4t64", MOE))[0] == "archon:d8t32"
    assert nearest(asked("archon:d4p2t5", DENSE))[0].startswith("archon:d5p2t4")


def test_a_misspelt_layout_has_the_meant_one_as_nearest() -> None:
    assert nearest(asked("Archon:d4 t2"))[0] == "archon:d4t2"


def test_experts_are_dropped_for_a_dense_model() -> None:
    assert nearest(asked("archon:d4e4", DENSE))[0] == "archon:d4"


def test_random_layouts_are_judged_like_a_run_judges_them() -> None:
    """A layout has no violation if and only if the checks of a run raise nothing."""
    random.seed(0)
    judged = {True: 0, False: 0}
    for _ in range(150):
        sizes = {letter: random.choice([1, 1, 2, 3, 4, 8, 16]) for letter in "dtpce"}
        text = "archon:" + "".join(f"{letter}{size}" for letter, size in sizes.items())
        try:
            check_as_a_run_does(text, heads=32, mlp=4096, layers=48, moe=True)
            works = True
        except (ArchonError, AssertionError):
            works = False
        assert (texts(asked(text)) == []) == works, text
        judged[works] += 1
    assert min(judged.values()) > 10


def test_a_written_layout_parses_to_its_sizes() -> None:
    random.seed(1)
    for _ in range(200):
        pp, r, d, c, t, ep, etp = (random.choice([1, 2, 4]) for _ in range(7))
        try:
            dims = ParallelDims(pp, r, d, c, t, ep, etp)
        except ArchonError:
            continue
        assert parse_layout(write_layout(dims, moe=True)).parallel_dims(moe=True) == dims
        dense = replace(dims, ep=1, etp=1)
        assert parse_layout(write_layout(dense)).parallel_dims(moe=False) == dense


def test_a_wrong_optimizer_is_a_violation_with_the_allowed_ones() -> None:
    request = asked("archon:d2")
    config = replace(request.config, optimizer=OptimizerConfig(type="lion"))
    found = texts(replace(request, config=config))
    assert len(found) == 1
    assert "adamw, adam, sgd, muon" in found[0]


@pytest.mark.parametrize(("strict", "align", "is_refused"), [(True, 3, True), (False, 3, False), (True, 6, False)])
def test_strict_turns_a_padding_that_the_layout_changes_into_a_violation(strict, align, is_refused) -> None:
    request = asked("archon:t2", strict=strict)
    found = texts(replace(request, config=replace(request.config, batch_align_to=align)))
    assert [("actor.batch_align_to: found 3, would use 6" in text) for text in found] == [True] * is_refused


def test_strict_turns_what_a_schedule_changes_into_a_violation() -> None:
    (violation,) = check(asked("archon:p2d2", pp_schedule="ZBVZeroBubble", strict=True)).violations
    assert violation.option == "actor.archon.strict"
    for option in ("actor.archon.ac_mode", "actor.archon.enable_compile", "actor.mb_spec.n_mbs"):
        assert option in violation.found


def test_a_rotation_by_length_cannot_share_prefixes() -> None:
    request = asked("archon:d4", DENSE)
    entries = {**request.model.entries, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    config = replace(request.config, enable_tree_training=True)
    request = replace(request, model=replace(request.model, entries=entries), config=config)
    (found,) = texts(request)
    assert "enable_tree_training: found true with rope_type 'dynamic', which rotates long sequences by " in found
    assert texts(replace(request, config=replace(config, enable_tree_training=False))) == []
