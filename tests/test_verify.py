"""A layout changes no number: Qwen on every axis and its products, held against one process."""

import json
import re
from pathlib import Path

import pytest
import torch

from archon_core.cli.main import main
from archon_engine.models.hf_config import load_hf_config
from archon_testing import verdicts
from archon_testing.cases import choose_variants, variant_case
from archon_testing.enumeration import Design
from archon_testing.oracle import Oracle
from archon_testing.oracle_ranks import RECORD, compute_references
from archon_testing.requested import read_layout, resume_layouts
from archon_testing.requested_model import read_model
from archon_testing.worlds import run_world

LAYOUTS = {
    "qwen3": ("d3", "c2t2", "r2d2t2", "p4-IZB", "d2p2t2-ZBV", "c8"),
    # Of four key heads, eight context ranks hold copies.
    "qwen2": ("t4", "c8"),
    "qwen3_moe": (
        "(attn:d2c2|ffn:e4)",
        "d2p2t2e4-1F1B",
        "(attn:p2t2c2|ffn:p2t1e4)-ZBV",
    ),
    "qwen3_5": ("p2c2-ZBV",),
    "qwen3_5_moe": ("(attn:c2t2|ffn:t1e4)",),
    "deepseek_v3": ("(attn:t2c2|ffn:t2e2)",),
}
"""Two ranks of the dense ones are in the tests of their package, two ranks with experts in test_qwen3_moe_suite.py,
every schedule on p2 in the test of ``--all`` below. test_micro_batching_changes_no_number.py has r2c2,
test_experts_engine.py (attn:t4|ffn:t2e2) and p2d2e2. `archon verify MODEL --all` looks at all that there are."""

ELSEWHERE = {
    "qwen3": ("d2", "t2", "r3", "d3", "d4", "c2t2", "p2d2", "r2d4", "c2t4"),
    "qwen2": ("d2", "t2", "d4", "c4", "p2t2-1F1B", "r2d4", "c2t4"),
    "qwen3_moe": ("d2e2", "d4e2", "c2t2", "(attn:t4|ffn:t2e2)", "d8e4", "c2t4"),
    "qwen3_5": ("c2t2",),
    "qwen3_5_moe": ("d2e2",),
    "deepseek_v3": ("d2e2", "c2t2"),
}
"""Where their runs are resumed."""

STYLES = {("qwen3", "c8"): "gather"}
"""How context ranks share attention, where it is not for the engine to choose."""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """What one process computes is computed once for all layouts."""
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def config_of(model, n_stages=1):
    return read_model(model).entries_for(n_stages)


def cases_of(model, layout):
    """Those of `archon verify --all`; of eight ranks or stages, which two cores take long for, one variant each."""
    number = LAYOUTS[model].index(layout)
    variants, counts = choose_variants(read_model(model).spec, []), (1, 2, 4)
    asked = read_layout(layout)
    if max(asked.layout.world_size, asked.n_stages) == 8:
        variants, counts = (variants[number % len(variants)],), (1, 4)
    style = STYLES.get((model, layout), "auto")
    fields = {"layout": str(asked.layout), "schedule": asked.schedule, "cp_style": style}
    of_variant = {v: variant_case(config_of(model, asked.n_stages), v, **fields) for v in variants}
    design = Design(("float64", "float32"), variants, counts, full=False, precision="float64")
    return design.cases(
        of_variant,
        number,
        n_stages=asked.n_stages,
        sums_gradients=asked.sums_gradients,
        resume_on=resume_layouts(asked, [read_layout(text) for text in ELSEWHERE[model]], number),
    )


def is_wide(model, layout):
    dims = read_layout(layout).layout.dims
    n_ranks = read_layout(layout).layout.world_size
    return (
        model not in ("qwen2", "qwen3")
        or n_ranks in (3, 8)
        or (n_ranks == 4 and (model == "qwen2" or dims["r"] == 2 or dims["p"] > 1))
    )


def describe(verdict):
    case, comparison = verdict.case, verdict.comparison
    name = f"{case.check} {case.compute_dtype} {case.variant} n_mbs={case.n_mbs} {case.recompute} {case.resumed_on}"
    if comparison is None:
        return f"{name}: {verdict.refusal}"
    errors = [f"{quantity} {comparison.worst[quantity]}" for quantity in comparison.failed]
    return f"{name}: {'; '.join([*errors, *comparison.problems])}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layout"),
    [
        pytest.param(model, layout, marks=[pytest.mark.wide] * is_wide(model, layout))
        for model in LAYOUTS
        for layout in LAYOUTS[model]
    ],
)
def test_a_layout_gives_the_numbers_of_one_process(oracle, model, layout):
    assert [describe(verdict) for verdict in oracle.verify(cases_of(model, layout)) if not verdict.passed] == []


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("qwen3_5", "qwen3_5_text"),
        ("qwen3_5_moe", "qwen3_5_moe_text"),
        ("gpt_oss", "gpt_oss"),
        ("glm4_moe", "glm4_moe"),
        ("deepseek_v3", "deepseek_v3"),
    ],
)
def test_configurations_with_the_entries_of_published_ones_are_verified(name, model_type):
    """Of a composite one, the language model."""
    found = read_model(str(Path(__file__).parent / "data" / f"{name}-tiny"))
    assert (found.spec.name, found.entries["model_type"]) == (name, model_type)
    tiny = found.spec.load_part("tiny_config")()
    assert found.entries["num_hidden_layers"] == tiny["num_hidden_layers"] == 4
    loaded = found.spec.load()
    for critic in (False, True) if "critic" in found.spec.capabilities else (False,):
        arguments = loaded.arguments.from_hf_config(load_hf_config(found.entries), critic=critic)
        loaded.parallel_plan(arguments)


def run_command(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments, "--variant", "untied", "--dtype", "float64", "--micro-batches", "2"])
    return exit_.value.code


@pytest.mark.slow
@pytest.mark.wide
def test_the_command_verifies_every_layout_that_there_is_and_writes_json(capsys, tmp_path):
    assert run_command("qwen3", "--all", "--world", "2", "--layout", "archon:d2", "--json", f"{tmp_path}/out.json") == 0
    printed = capsys.readouterr().out
    lines = [line.split()[:2] for line in printed.splitlines()]
    schedules = ("GPipe", "1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")
    pipelines = ("p2", *(f"p2-{schedule}" for schedule in schedules))
    assert lines[:-1] == [["PASS", f"archon:{dims}"] for dims in ("d2", "d1", *pipelines, "r2", "c2", "t2")]
    # d1 is resumed on itself alone, all others on another layout and on d1; one run more recomputes.
    assert "PASS: 10 of 10 layouts give the numbers of one process (49 cases" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["passed"]
    assert [layout["outcome"] for layout in written["layouts"]] == ["passed"] * 10
    cases = written["layouts"][0]["cases"]
    assert [(case["check"], case["n_mbs"], case["recompute"]) for case in cases] == [
        ("training", 2, "none"),
        ("training", 2, "full"),
        ("initial", 1, "none"),
        ("resume", 1, "none"),
        ("resume", 1, "none"),
    ]
    assert [case["exports"] for case in cases] == [True, False, False, False, False]
    assert [case["resumed_on"] for case in cases][3:] == ["archon:p2", "archon:d1"]


@pytest.mark.slow
def test_the_command_exits_with_1_when_a_number_differs_and_names_it(capsys, monkeypatch):
    # Two micro-batches add up in another order than one.
    monkeypatch.setitem(verdicts.LIMITS, "float64", 0.0)
    assert run_command("qwen3", "--layout", "d1") == 1
    printed = capsys.readouterr().out
    assert "FAIL float64 untied: gradients: " in printed
    assert "DIAGNOSIS float64 untied, 2 micro-batches" in printed
    assert "different: archon:d1" in printed


@pytest.mark.slow
def test_the_command_exits_with_2_for_a_layout_that_does_not_fit_and_runs_the_others(capsys):
    assert run_command("qwen2", "--layout", "t6", "--layout", "d1") == 2
    printed = capsys.readouterr().out
    assert "REFUSED" in printed
    assert "the largest t below 6 that works is t4" in printed
    assert "1 of 2 layouts" in printed


@pytest.mark.slow
def test_a_large_configuration_is_verified_with_its_structure_in_a_small_size(capsys, tmp_path):
    entries = {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "sliding_window": 4096,
        "max_window_layers": 21,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
        "max_position_embeddings": 131072,
        "bos_token_id": 151643,
    }
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert run_command(str(tmp_path), "--layout", "t2") == 0
    captured = capsys.readouterr()
    assert re.search(r"was shrunk.* hidden_size 3584 -> 112, .*num_hidden_layers 28 -> 4", captured.err)
    assert "PASS: 1 of 1 layouts" in captured.out


def facts_of_reference(case, folder):
    assert list(compute_references([(case, folder)])) == [None]
    record = torch.load(folder / RECORD, weights_only=False)
    names = {frozenset(shards) for moment in record.steps for shards in (moment.gradients, moment.weights)}
    gradients = [shard.values for moment in record.steps for shard in moment.gradients.values()]
    shape = record.steps[0].gradients["embed.weight"].shape
    return [sorted(found) for found in names], shape, min(float(gradient.abs().max()) for gradient in gradients)


def test_a_reference_holds_every_parameter_whole_and_no_gradient_that_is_zero(tmp_path):
    config = config_of("qwen2")
    [([names], shape, smallest)] = run_world(facts_of_reference, 1, (variant_case(config, "untied"), tmp_path))
    assert len(names) == 3 + 12 * config["num_hidden_layers"]
    assert shape == (config["vocab_size"], config["hidden_size"])
    assert smallest > 0
