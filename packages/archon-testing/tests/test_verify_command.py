"""What ``archon verify`` makes of what users write. No rank is started here."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from archon_core.cli.main import main
from archon_core.errors import ConfigError, LayoutError, ModelError, UnknownNameError
from archon_core.plugins import ModelSpec, PipelineSpec, ScheduleSpec, registry
from archon_testing.cases import Case, choose_variants, variant_case
from archon_testing.cli import exit_code
from archon_testing.diagnosis import Cause, Diagnosis, Finding
from archon_testing.enumeration import Design
from archon_testing.json_report import json_report
from archon_testing.pipelines import runnable_axes
from archon_testing.report import print_line, print_report, print_summary
from archon_testing.requested import read_layout, read_layouts
from archon_testing.requested_model import RequestedModel, read_model
from archon_testing.verdicts import QUANTITIES, Comparison, Deviation, Verdict
from archon_testing.verification import LayoutReport, Plan, too_few_layers


def tiny():
    return {"model_type": "house", "vocab_size": 8}


@pytest.fixture
def house():
    """A model that is registered and never built."""
    spec = ModelSpec(
        name="house",
        target="os:path",
        model_types=("house",),
        tiny_config="archon_testing_house:tiny",
        capabilities=frozenset({"tp", "critic"}),
    )
    module = type(sys)("archon_testing_house")
    module.tiny = tiny
    sys.modules[module.__name__] = module
    registry().add(spec)
    yield spec
    registry().remove(ModelSpec, "house")
    del sys.modules[module.__name__]


@pytest.fixture
def without_pipelines(monkeypatch):
    """As if archon-pipeline were not installed; what is registered is forgotten again."""
    monkeypatch.setenv("ARCHON_DISABLE_PLUGINS", "pipeline")
    registry.cache_clear()
    yield
    monkeypatch.undo()
    registry.cache_clear()


@pytest.fixture
def zigzag(without_pipelines):
    """Somebody else's schedule and pipeline."""
    registry().add(ScheduleSpec(name="ZigZag", target="os:path", aliases=("ZZ",), stages_per_rank=3))
    registry().add(PipelineSpec(name="pipeline", target="os:path", split="os:path"))


def report(layout, error=0.0, *, refusal="", crash="", problems=()):
    """A report of one float64 case whose gradients are off by ``error``."""
    worst = {quantity: Deviation(0.0, "none", 1) for quantity in QUANTITIES}
    worst["gradients"] = Deviation(error, "norm.weight", 2)
    verdict = Verdict(Case({}), Comparison("float64", worst, problems))
    return LayoutReport(read_layout(layout), [] if refusal else [verdict], refusal, crash)


@pytest.mark.parametrize(
    ("text", "shown", "ranks"),
    [
        ("d2t2", "archon:d2t2", 4),
        ("archon:t2d4", "archon:t2d4", 8),
        ("(attn:d2t2|ffn:d1e4)", "archon:(attn:d2t2|ffn:d1e4)", 4),
        ("archon:(attn:d2t2|ffn:d1e4)", "archon:(attn:d2t2|ffn:d1e4)", 4),
    ],
)
def test_a_layout_may_be_written_without_its_backend(text, shown, ranks):
    requested = read_layout(text)
    assert (str(requested), requested.layout.world_size, requested.schedule) == (shown, ranks, None)


def test_layouts_that_are_asked_for_twice_run_once():
    assert [str(layout) for layout in read_layouts(["d2", "t2", "archon:d2"])] == ["archon:d2", "archon:t2"]


def test_a_schedule_is_read_behind_the_dims_by_name_or_alias(zigzag):
    assert str(read_layout("p2-ZZ")) == str(read_layout("archon:p2-ZigZag")) == "archon:p2-ZigZag"
    assert [read_layout(text).n_stages for text in ("d2", "p2-ZZ", "d2p4-ZZ")] == [1, 6, 12]


def test_a_pipeline_without_a_name_runs_the_engines_own_schedule(zigzag):
    registry().add(ScheduleSpec(name="Interleaved1F1B", target="os:path", stages_per_rank=None))
    found = read_layout("p2")
    assert (str(found), found.schedule, found.n_stages) == ("archon:p2", None, 4)
    assert "p" in runnable_axes()


@pytest.mark.parametrize("text", ["p2", "d2p2t2", "p2-ZBV"])
def test_a_pipeline_without_archon_pipeline_says_what_is_missing(without_pipelines, text):
    with pytest.raises(UnknownNameError, match="archon-pipeline"):
        read_layout(text)
    assert set(runnable_axes()) >= set("dtcr")
    assert "p" not in runnable_axes()


def test_a_schedule_without_what_runs_it_says_what_is_missing(without_pipelines):
    registry().add(ScheduleSpec(name="Alone", target="os:path"))
    with pytest.raises(UnknownNameError, match="archon-pipeline"):
        read_layout("p2-Alone")


def test_a_model_whose_sizes_are_given_may_have_too_few_layers_for_a_pipeline(zigzag, house):
    model = RequestedModel(house, {**tiny(), "num_hidden_layers": 3}, as_given=True)
    deeper = replace(model, entries={**tiny(), "num_hidden_layers": 4})
    assert too_few_layers(model, read_layout("p2-ZZ")) == (
        "found 6 stages; 3 layers, the embedding and the head fill 5"
    )
    assert too_few_layers(deeper, read_layout("p2-ZZ")) == too_few_layers(model, read_layout("d2")) == ""
    assert too_few_layers(replace(model, as_given=False), read_layout("p2-ZZ")) == ""


def test_every_stage_of_a_model_for_tests_has_a_layer(house):
    model = RequestedModel(house, {**tiny(), "num_hidden_layers": 4})
    assert [model.entries_for(n)["num_hidden_layers"] for n in (1, 2, 4, 8)] == [2, 4, 4, 8]
    as_given = replace(model, as_given=True)
    assert [as_given.entries_for(n)["num_hidden_layers"] for n in (1, 8)] == [4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d2x", "unknown letter 'x'"),
        ("d0", "d0"),
        ("d16", "at most 8"),
        ("d2-1F1B", "without pipeline parallelism.*write d2, or p2-1F1B"),
        ("vllm:d2", "the inference engine 'vllm'.*write archon:d2"),
        ("nosuch:d2", "nosuch"),
    ],
)
def test_a_layout_that_cannot_be_verified_says_what_is_allowed(text, message):
    with pytest.raises((LayoutError, UnknownNameError), match=message):
        read_layout(text)


def test_axes_that_the_engine_cannot_run_are_refused(monkeypatch):
    layouts = read_layouts(["d2t2", "e2d2"])

    class OfAnEarlierEngine:
        def get(self, kind, name):
            return SimpleNamespace(axes="dt")

    monkeypatch.setattr("archon_testing.requested.registry", OfAnEarlierEngine)
    layouts[0].check_runnable()
    with pytest.raises(LayoutError, match="--layout 'archon:e2d2': found expert parallelism"):
        layouts[1].check_runnable()


def test_a_registered_model_is_taken_in_its_tiny_size(house):
    assert read_model("house") == RequestedModel(house, tiny())


def test_a_folder_without_a_configuration_and_as_is_without_a_file_are_refused(house, tmp_path):
    with pytest.raises(UnknownNameError, match=r"found no config\.json in that folder; give the path"):
        read_model(str(tmp_path))
    with pytest.raises(ConfigError, match="--as-is: found it with the registered model 'house'"):
        read_model("house", as_is=True)


def test_a_config_file_or_its_folder_is_a_model(house, tmp_path):
    entries = {**tiny(), "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    as_given = RequestedModel(house, entries, as_given=True)
    assert read_model(str(tmp_path)) == read_model(str(tmp_path / "config.json")) == as_given


def test_a_large_config_file_is_made_small_unless_it_shall_stay_as_it_is(house, tmp_path):
    large = {**tiny(), "vocab_size": 128_000, "hidden_size": 4096, "attention_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(large))
    found = read_model(str(tmp_path))
    assert found.changes == ("vocab_size 128000 -> 40", "hidden_size 4096 -> 4")
    assert (found.entries["attention_bias"], found.as_given) == (True, False)
    assert read_model(str(tmp_path), as_is=True).entries == large


def test_what_is_no_model_says_why(house, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'house'"):
        read_model("hous")
    with pytest.raises(UnknownNameError, match=r"no such file; give the path of a config\.json"):
        read_model("some/where.json")
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(ModelError, match="no model_type"):
        read_model(str(file))
    file.write_text("{")
    with pytest.raises(ModelError, match="no readable JSON"):
        read_model(str(file))


def test_variants_are_those_that_the_model_declares(house):
    assert choose_variants(house, []) == ("untied", "critic")
    assert choose_variants(house, ["critic", "critic"]) == ("critic",)
    with pytest.raises(UnknownNameError, match="variant 'tied': model 'house' declares untied, critic"):
        choose_variants(house, ["tied"])


def test_a_variants_case_says_so_in_the_configuration():
    assert variant_case(tiny(), "tied").model_config["tie_word_embeddings"] is True
    critic = variant_case(tiny(), "critic", dtype="float32")
    assert (critic.critic, critic.model_config["tie_word_embeddings"], critic.dtype) == (True, False, "float32")


def test_the_reference_of_a_case_is_one_process_and_one_micro_batch():
    case = Case(tiny(), critic=True, layout="archon:p2", n_mbs=4, dtype="float32", seed=3, schedule="ZBV")
    assert case.reference == Case(tiny(), critic=True, dtype="float32", seed=3)


@pytest.mark.parametrize(
    ("reports", "code"),
    [
        ([("d2", {})], 0),
        ([("d2", {}), ("t2", {"error": 1e-3})], 1),
        ([("d2", {}), ("t2", {"refusal": "no"})], 2),
        ([("d2", {"error": 1e-3}), ("t2", {"refusal": "no"})], 1),
        ([("d2", {"problems": ("ranks disagree",)})], 1),
        ([("d2", {"crash": "rank 1 failed first"})], 1),
    ],
)
def test_the_exit_code_tells_a_difference_from_a_refusal(reports, code):
    assert exit_code([report(layout, **fields) for layout, fields in reports]) == code


def test_a_table_names_the_worst_gradient_and_what_failed(capsys):
    print_report(report("d2", 1e-3, problems=("step 1: ranks report different values of loss",)))
    printed = capsys.readouterr().out
    assert "archon:d2, 2 ranks" in printed
    [row] = [line for line in printed.splitlines() if line.startswith("float64")]
    assert row.split() == ["float64", "untied", *["0.0e+00"] * 2, "1.0e-03", *["0.0e+00"] * 4, "FAIL", "norm.weight"]
    assert "FAIL float64 untied: gradients: 1.0e-03 norm.weight (step 2)" in printed
    assert "FAIL float64 untied: step 1: ranks report different values of loss" in printed


def test_a_layout_that_agrees_takes_one_line(capsys):
    print_line(report("d2t2"))
    words = "PASS archon:d2t2 4 ranks 1 cases worst in float64 0.0e+00"
    assert capsys.readouterr().out.split() == words.split()


FOUND = Diagnosis(
    Case({}),
    n_modules=7,
    n_parameters=3,
    n_wrong=2,
    parameter=Finding("norm.weight", 0.5, Cause("factor", ("tp",), 0.5), (1, 3), {"tp": 1}),
)


def test_a_diagnosis_says_where_a_mistake_shows_first_and_by_what_factor(capsys):
    print_report(replace(report("d2t2", 1e-3), diagnoses=[FOUND]))
    printed = capsys.readouterr().out
    assert "DIAGNOSIS float64 untied, 1 micro-batch" in printed
    assert "forward agrees in all 7 modules" in printed
    assert (
        "first parameter that backward reaches whose gradient differs (step 1; 2 of 3 differ): norm.weight: off by "
        "5.0e-01; on ranks 1, 3 (tp 1); 0.5 times the right value, cleanly: a missing reduction, or a mean instead of "
        "a sum over tp"
    ) in printed


def test_the_last_line_counts_layouts_and_names_those_that_differ(capsys):
    reports = [report("d2"), report("t2", 1e-3), report("d4", crash="hung"), report("c2", refusal="no")]
    print_summary(reports, {"t3": "found t3; no", "r2t3": "found t3; no"})
    left_out, line = capsys.readouterr().out.splitlines()
    assert left_out == "2 layouts left out, because they do not fit this model, such as t3: found t3; no"
    assert line.startswith("FAIL: 1 of 4 layouts give the numbers of one process (3 cases;")
    assert line.rstrip().endswith("different: archon:t2; crashed: archon:d4; refused: archon:c2")


def test_json_holds_everything_and_no_infinity(house):
    design = Design(("float64",), ("untied",), (1,), full=True)
    plan = Plan(RequestedModel(house, tiny()), [], {"t3": "no"}, design, seed=1)
    reports = [replace(report("d2", math.inf), diagnoses=[FOUND]), report("c2", refusal="no")]
    content = json.loads(json.dumps(json_report(plan, reports, seconds=1.23456), allow_nan=False))
    assert (content["schema"], content["passed"], content["seconds"]) == (2, False, 1.235)
    assert content["left_out"] == [{"layout": "t3", "reason": "no"}]
    differs, refused = content["layouts"]
    assert (differs["outcome"], refused["outcome"], refused["refusal"]) == ("different", "refused", "no")
    assert differs["cases"][0]["errors"]["gradients"] == {"error": "inf", "name": "norm.weight", "step": 2}
    [diagnosis] = differs["diagnoses"]
    assert diagnosis["parameter"] == {
        "name": "norm.weight",
        "error": 0.5,
        "cause": "factor",
        "axes": ["tp"],
        "factor": 0.5,
        "candidates": [],
        "ranks": [1, 3],
        "where": {"tp": 1},
        "experts": [],
        "first_position": 0,
    }
    assert (diagnosis["one_process_differs"], diagnosis["recomputation"], diagnosis["export"]) == (False, False, None)
    assert diagnosis["text"] == FOUND.lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["house"], "found neither --layout nor --all"),
        (["house", "--layout", "d9"], "at most 8"),
        (["house", "--layout", "d2", "--world", "4"], "--world: found it without --all"),
        (["house", "--layout", "d2", "--full"], "--full: found it without --all"),
        (["house", "--layout", "d2", "--json", "no/such/folder.json"], "name a file in an existing, writable folder"),
        (["house", "--layout", "d2", "--json", "."], "--json: cannot write '.'"),
        (["nosuch", "--layout", "d2"], "no installed plugin provides it"),
        (["house", "--layout", "d2", "--dtype", "bf16"], "allowed are float64, float32 and bfloat16"),
        (["house", "--layout", "d2", "--variant", "tied"], "declares untied, critic"),
    ],
)
def test_mistakes_of_the_user_exit_with_2_and_a_message(house, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_that_a_user_waits_for_imports_torch():
    imports = "import archon_testing.cli, archon_testing.plugin; from archon_testing import ModelPluginSuite"
    program = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
