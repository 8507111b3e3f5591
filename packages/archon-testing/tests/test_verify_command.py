"""What ``archon verify`` makes of what users write. No rank is started here."""

import json
import subprocess
import sys

import pytest

from archon_core.cli.main import main
from archon_core.errors import LayoutError, ModelError, UnknownNameError
from archon_core.plugins import ModelSpec, ScheduleSpec, registry
from archon_testing.cases import Case, choose_variants, variant_case
from archon_testing.cli import exit_code
from archon_testing.report import LayoutReport, print_report, print_summary
from archon_testing.requested import read_layout, read_layouts, read_model
from archon_testing.verdicts import QUANTITIES, Comparison, Deviation, Verdict


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
def zigzag():
    registry().add(ScheduleSpec(name="ZigZag", target="os:path", aliases=("ZZ",)))
    yield
    registry().remove(ScheduleSpec, "ZigZag")


def report(layout, error=0.0, *, refusal="", crash="", problems=()):
    """A report of one float64 case whose gradients are off by ``error``."""
    worst = {quantity: Deviation(0.0, "none", 1) for quantity in QUANTITIES}
    worst["gradients"] = Deviation(error, "norm.weight", 2)
    verdict = Verdict(Case({}), Comparison("float64", worst, problems))
    return LayoutReport(read_layout(layout), [] if refusal else [("untied", verdict)], refusal, crash)


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d2x", "unknown letter 'x'"),
        ("d0", "d0"),
        ("d16", "at most 8"),
        ("d2-1F1B", "without pipeline parallelism.*write d2, or p2-1F1B"),
        ("vllm:d2", "'vllm', which generates.*write archon:d2"),
        ("p2-ZBV", "pip install archon-pipeline"),
        ("nosuch:d2", "nosuch"),
    ],
)
def test_a_layout_that_cannot_be_verified_says_what_is_allowed(text, message):
    with pytest.raises((LayoutError, UnknownNameError), match=message):
        read_layout(text)


def test_axes_that_the_engine_cannot_run_are_refused():
    read_layout("d2t2").check_runnable()
    with pytest.raises(LayoutError, match="--layout 'archon:p2': found pipeline parallelism"):
        read_layout("p2").check_runnable()


def test_a_registered_model_is_taken_in_its_tiny_size(house):
    assert read_model("house") == (house, tiny())


def test_a_config_file_or_its_folder_is_a_model(house, tmp_path):
    entries = {**tiny(), "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert read_model(str(tmp_path)) == read_model(str(tmp_path / "config.json")) == (house, entries)


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
    assert row.split() == ["float64", "untied", *["0.0e+00"] * 2, "1.0e-03", *["0.0e+00"] * 2, "FAIL", "norm.weight"]
    assert "FAIL float64 untied: gradients: 1.0e-03 norm.weight (step 2)" in printed
    assert "FAIL float64 untied: step 1: ranks report different values of loss" in printed


def test_the_last_line_counts_layouts_and_names_those_that_differ(capsys):
    print_summary([report("d2"), report("t2", 1e-3), report("d4", crash="hung"), report("c2", refusal="no")])
    line = capsys.readouterr().out
    assert line.startswith("FAIL: 1 of 4 layouts give the numbers of one process (3 cases;")
    assert line.rstrip().endswith("different: archon:t2; crashed: archon:d4; refused: archon:c2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["house", "--layout", "d9"], "at most 8"),
        (["nosuch", "--layout", "d2"], "no installed plugin provides it"),
        (["house", "--layout", "d2", "--dtype", "bf16"], "allowed are float64 and float32"),
        (["house", "--layout", "d2", "--variant", "tied"], "declares untied, critic"),
    ],
)
def test_mistakes_of_the_user_exit_with_2_and_a_message(house, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_that_a_user_waits_for_imports_torch():
    program = "import sys, archon_testing.cli, archon_testing.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
