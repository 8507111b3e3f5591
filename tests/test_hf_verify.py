"""``archon verify`` and dry runs of models that no package serves: messages, and what runs."""

from __future__ import annotations

import json

import pytest

from archon_core.cli.main import main

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
QUICK = ["--variant", "untied", "--micro-batches", "2"]


@pytest.fixture
def config_of(tmp_path):
    def write(model_type, **entries):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"model_type": model_type, **SIZES, **entries}))
        return str(file)

    return write


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, " ".join(captured.err.split())


def test_an_unserved_model_type_is_verified_through_the_model_that_takes_any_which_is_said(capsys, config_of):
    file = config_of("mistral", sliding_window=8)
    code, out, told = run(capsys, "verify", file, "--layout", "d2", *QUICK)
    assert code == 0, told
    assert "no installed package serves model type 'mistral'; verified is model 'hf', which takes any" in told
    assert "compared in float32 alone: transformers' modules compute norms" in told
    assert "PASS: 1 of 1 layouts give the numbers of one process" in " ".join(out.split())
    assert "float64 untied" not in out


def test_tensor_ranks_share_one_key_head_and_a_vocabulary_that_they_do_not_divide(capsys, config_of):
    file = config_of("llama", vocab_size=101, num_key_value_heads=1)
    code, out, told = run(capsys, "verify", file, "--layout", "t2", *QUICK)
    assert code == 0, told
    assert "PASS: 1 of 1 layouts give the numbers of one process" in " ".join(out.split())


def test_an_fsdp_layout_verifies_transformers_module_of_a_served_model(capsys, tmp_path):
    report = tmp_path / "report.json"
    code, _, told = run(capsys, "verify", "qwen3", "--layout", "fsdp:t2", *QUICK, "--json", str(report))
    assert code == 0, told
    found = json.loads(report.read_text())
    assert (found["model"]["name"], found["model"]["config"]["model_type"]) == ("hf", "qwen3")
    assert found["layouts"][0]["layout"] == "fsdp:t2"
    assert {case["dtype"] for case in found["layouts"][0]["cases"]} == {"float32", "bfloat16"}
    assert any("float32 alone" in remark for remark in found["model"]["remarks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--layout", "d2", "--dtype", "float64"],
            "model 'hf' is compared in float32 and bfloat16: transformers' modules",
        ),
        (["--layout", "d2", "--model", "qwen3"], "serves the model types qwen3, not 'mistral'"),
        (
            ["--layout", "archon:d2", "--layout", "fsdp:d2", "--model", "qwen3"],
            "--model: found 'qwen3'; engine 'fsdp' runs model 'hf'",
        ),
        (["--layout", "fsdp:p2"], "found pipeline parallelism (p2), which fsdp does not have"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(capsys, config_of, arguments, message):
    code, _, told = run(capsys, "verify", config_of("mistral"), *arguments)
    assert code == 2
    assert message in told


def test_layouts_of_engines_that_run_different_models_are_refused_together(capsys):
    code, _, told = run(capsys, "verify", "qwen3", "--layout", "archon:d2", "--layout", "fsdp:d2")
    assert code == 2
    assert "found archon:d2 and fsdp:d2, whose engines run different models (the one that serves and hf)" in told
    assert "--model hf" in told


def test_a_variant_that_one_model_has_not_is_refused_when_it_is_asked_for(capsys, config_of):
    code, _, told = run(capsys, "verify", config_of("granite"), "--layout", "d2", "--variant", "critic")
    assert code == 2
    assert "'granite': found no class for sequence classification" in told


def test_a_model_that_cannot_be_run_is_refused_with_the_reason(capsys, config_of):
    code, _, told = run(capsys, "verify", config_of("gpt_oss", num_local_experts=4), "--model", "hf", "--layout", "d2")
    assert code == 2
    assert "found the argument s_aux" in told


def dry_run(capsys, tmp_path, backend, *overrides):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"experiment_name: e\ntrial_name: t\nalgorithm: sft\nactor:\n  backend: '{backend}'\n  model_config: "
        f"{json.dumps({'model_type': 'mistral', **SIZES})}\ntokenizer: {{kind: characters}}\n"
        "data: {dataset: arithmetic, batch_size: 4}\n"
    )
    return run(capsys, "train", str(file), "--dry-run", f"cluster.fileroot={tmp_path}", *overrides)


def test_a_dry_run_knows_what_serves_a_model_type_under_which_prefix(capsys, tmp_path):
    _, out, told = dry_run(capsys, tmp_path, "archon:d1")
    text = " ".join((out + told).split())
    assert "model type 'mistral': no installed plugin provides it" in text
    assert "with an fsdp: backend in place of archon:" in text
    for arguments in (["fsdp:d1"], ["archon:d1", "actor.archon.model=hf"]):
        code, out, told = dry_run(capsys, tmp_path, *arguments)
        assert code == 0
        assert "mistral'" not in out + told


def test_a_dry_run_refuses_another_model_under_fsdp(capsys, tmp_path):
    code, out, told = dry_run(capsys, tmp_path, "fsdp:d1", "actor.archon.model=qwen3")
    assert code != 0
    assert "engine 'fsdp' runs model 'hf' for every model type" in " ".join((out + told).split())
