"""AReaL's example configurations: each dry-runs or names what is missing, and those that Archon supports train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import areal_files
from archon_core.cli.main import main
from archon_core.config.loading import LoadedConfig
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run
from archon_train.run.metrics import read_metrics

CONFIGS = areal_files.read_stored()
PROBLEMS = [{"question": f"What is {a} plus {b}?", "answer": f"#### {a + b}"} for a in range(4) for b in range(4)]
ANSWERS = {"chosen": 0, "rejected": 1}
DIALOGUES = [
    {side: f"\n\nHuman: What is {a} plus {b}?\n\nAssistant: {a + b + wrong}" for side, wrong in ANSWERS.items()}
    for a in range(4)
    for b in range(4)
]
"""In the form of HH-RLHF."""

FAMILIES = {"qwen2": ("Qwen2", "Distill-Qwen"), "qwen3_moe": ("A3B", "A22B"), "qwen3": ("Qwen3",)}
"""Model type -> parts of the names of its checkpoints."""

SHORT = {
    "actor.backend": "archon:d1",
    "actor.archon.enable_compile": "false",
    "rollout.backend": "local",
    "scheduler.type": "local",
    "stats_logger.wandb.mode": "disabled",
    "cluster.n_gpus_per_node": "0",
    "data.dataset": "jsonl",
    "data.validation_path": "null",
    "data.validation_size": "2",
    "data.batch_size": "4",
    "trainer.max_steps": "2",
    "trainer.save_every": "0",
}
"""One process, two small steps."""

QUICK = ("math/gsm8k_sft.yaml", "alignment/hhrlhf_dpo.yaml")
"""Files that train in the ordinary suite."""

SAMPLING = {"reward": "gsm8k", "gconfig.n_samples": "2", "gconfig.max_new_tokens": "4", "gconfig.max_tokens": "null"}


CRITIC = """
critic:
  backend: ${actor.backend}
  experiment_name: ${experiment_name}
  trial_name: ${trial_name}
  path: ${actor.path}
  init_from_scratch: false
  disable_dropout: true
  gradient_checkpointing: true
  is_critic: true
  dtype: ${actor.dtype}
  mb_spec: {max_tokens_per_mb: 10240}
  optimizer: {type: adam, lr: 1e-5, weight_decay: 0.01, lr_scheduler_type: constant}
  ppo_n_minibatches: 2
  eps_clip: 0.2
  mask_no_eos_with_zero: true
  scheduling_spec: ${actor.scheduling_spec}
"""
"""The section that turns a file of AReaL into PPO."""


def write(file: str, folder: Path) -> Path:
    """Write all files, since one may build on another, and return one of them."""
    for name, config in CONFIGS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / file


def family(file: str) -> str | None:
    """The model type of a file's actor; ``None`` if Archon has no model of its own for it."""
    path = CONFIGS[file].get("actor", {}).get("path", "")
    return next((kind for kind, parts in FAMILIES.items() if any(part in path for part in parts)), None)


def overrides(file: str, model: Path, root: Path) -> list[str]:
    """Options that make a file small and local."""
    config = CONFIGS[file]
    options = SHORT | {"actor.path": str(model), "tokenizer_path": str(model), "cluster.fileroot": str(root / "runs")}
    options["data.path"] = str(root / "problems.jsonl")
    if "gconfig" in config:
        options |= SAMPLING
    if config.get("teacher", {}).get("rollout", {}).get("backend"):
        options |= {"teacher.path": str(model), "teacher.rollout.backend": "served:d1"}
    if config.get("actor", {}).get("pad_to_maximum"):
        options["actor.mb_spec.max_tokens_per_mb"] = "512"  # not 32,768 tokens of padding
    if "overlong_tokens" in config.get("actor", {}):
        options["actor.overlong_tokens"] = "2"
    return [f"{option}={value}" for option, value in options.items()]


def write_problems(root: Path, config: dict) -> None:
    records = DIALOGUES if config.get("train_dataset", {}).get("type") in ("dpo", "rw") else PROBLEMS
    (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random checkpoint with a tokenizer, by model type."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from archon_rl.tokenization import bpe_tokenizer

        if kind in folders:
            return folders[kind]
        torch.manual_seed(1)
        tokenizer = bpe_tokenizer((text for row in PROBLEMS for text in row.values()), 320)
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id,
            **({} if kind == "qwen2" else {"head_dim": 8}),
            **(experts if kind == "qwen3_moe" else {}),
        )
        folder = tmp_path_factory.mktemp(kind)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[kind] = folder
        return folder

    return make


@pytest.fixture(autouse=True)
def _gpus_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a run without GPUs hides them; restored afterwards


def test_every_file_is_accepted_or_names_one_thing_that_is_missing() -> None:
    for found in areal_files.outcomes(CONFIGS):
        if found.outcome == "refused":
            # One file's engines need more devices than its cluster has, beside what is missing.
            missing = [reason for reason in found.reasons if not reason.startswith("cluster:")]
            assert len(missing) == 1, f"several problems: {found}"
        else:
            assert "problems" not in found.line, found


@pytest.mark.parametrize("file", [file for file in CONFIGS if file.startswith("vlm")])
def test_images_are_refused_whatever_else_a_file_lacks(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*visual models and data sets: found [^\n]*$"):
        load_config(write(file, tmp_path))


def test_a_cluster_without_gpus_runs_on_cpus(tmp_path: Path) -> None:
    loaded: LoadedConfig = load_config(
        write("math/gsm8k_grpo_cpu.yaml", tmp_path),
        ["actor.rejection_sampling=null", "actor.backend=archon:d4"],
        allow_missing=True,
    )
    plan = plan_run(loaded, registry())
    assert loaded.config.cluster.n_gpus_per_node == 0
    assert not [obstacle for obstacle in plan.obstacles if "cluster" in obstacle.text]


def test_hh_rlhf_holds_its_test_split_out_and_leaves_out_pairs_that_express_nothing(tmp_path: Path) -> None:
    loaded = load_config(write("alignment/hhrlhf_dpo.yaml", tmp_path))
    assert (loaded.config.algorithm, loaded.config.actor.beta) == ("dpo", 0.1)
    data = loaded.config.data
    assert (data.validation_path, data.hf.validation_split, data.equal_pairs) == (None, "test", "drop")
    [decision] = [decision for decision in loaded.decisions if decision.option == "data.equal_pairs"]
    assert decision.reason.startswith("AReaL keeps pairs of equal answers")


@pytest.mark.parametrize("overridden", [False, True])
def test_a_known_data_set_is_held_out_only_in_files_with_validation_data(tmp_path: Path, overridden: bool) -> None:
    config = CONFIGS["math/gsm8k_sft.yaml"]
    path = tmp_path / "config.yaml"
    for section, split in ((config["valid_dataset"], "test"), (None, None)):
        written = config if overridden else config | {"valid_dataset": section}
        path.write_text(yaml.safe_dump(written))
        loaded = load_config(path, ["valid_dataset=null"] if overridden and section is None else [])
        assert (loaded.config.data.validation_path, loaded.config.data.hf.validation_split) == (None, split)
        made = [decision for decision in loaded.decisions if decision.option == "data.hf.validation_split"]
        assert len(made) == (split is not None)


def test_stored_files_survive_storing(tmp_path: Path) -> None:
    areal_files.store(CONFIGS, tmp_path / "again.tsv")
    assert areal_files.read_stored(tmp_path / "again.tsv") == CONFIGS


def test_the_command_prints_a_line_per_file_and_succeeds(tmp_path: Path, capsys, monkeypatch) -> None:
    files = ["math/gsm8k_sft.yaml", "vlm/geometry3k_grpo.yaml", "tau2/config_8b_airline.yaml"]
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps({"file": name, "config": CONFIGS[name]}) + "\n" for name in files))
    monkeypatch.setattr("sys.argv", ["areal_files.py", str(examples)])
    assert areal_files.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["math/gsm8k_sft.yaml", "runs"]
    assert lines[1].startswith("vlm/geometry3k_grpo.yaml     refused   visual models and data sets: found")
    assert "  accepted  " in lines[2]
    assert "; reward: found none" in lines[2]
    assert lines[3] == "3 files: 1 runs, 1 accepted, 1 refused"


def trains(file: str, model: Callable[[str], Path], root: Path) -> None:
    """Two steps of a file."""
    kind = family(file)
    assert kind is not None
    write_problems(root, CONFIGS[file])
    path, options = write(file, root), overrides(file, model(kind), root)
    config = load_config(path, options).config
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path), *options])
    assert ended.value.code == 0
    rows = read_metrics(root / "runs" / config.experiment_name / config.trial_name / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def write_ppo(root: Path) -> Path:
    path = write("math/gsm8k_grpo.yaml", root)
    path.write_text(path.read_text() + CRITIC)
    return path


def test_a_file_with_a_critic_is_ppo_with_areals_options(tmp_path: Path) -> None:
    loaded = load_config(write_ppo(tmp_path), ["actor.backend=archon:d2"], allow_missing=True)
    critic = loaded.config.critic
    assert loaded.config.algorithm == "ppo"
    assert (critic.ppo_n_minibatches, critic.eps_clip, critic.mask_no_eos_with_zero) == (2, 0.2, True)
    assert (critic.backend, critic.path) == ("archon:d2", loaded.config.actor.path)
    rows = [(option, d.effective) for d in loaded.decisions for option in d.option.split(", ")]
    ours = {option: effective for option, effective in rows if option.startswith("critic.")}
    assert ours == {
        "critic.optimizer.type": "adamw",
        "critic.optimizer.warmup_steps_proportion": "0.001",
        "critic.archon.enable_compile": "false",
    }, "every other option is honoured, or says what Archon does anyway"


@pytest.mark.wide
def test_ppo_trains_from_a_file_of_areal(model: Callable[[str], Path], tmp_path: Path) -> None:
    write_problems(tmp_path, CONFIGS["math/gsm8k_grpo.yaml"])
    path, options = write_ppo(tmp_path), overrides("math/gsm8k_grpo.yaml", model("qwen2"), tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path), *options, "critic.archon.enable_compile=false", "critic.mask_no_eos_with_zero=false"])
    assert ended.value.code == 0
    config = CONFIGS["math/gsm8k_grpo.yaml"]
    rows = read_metrics(tmp_path / "runs" / config["experiment_name"] / config["trial_name"] / "metrics.jsonl")
    assert [row["step"] for row in rows if "critic/loss" in row] == [1, 2]


def test_supervised_training_runs_from_areals_file(model: Callable[[str], Path], tmp_path: Path) -> None:
    trains("math/gsm8k_sft.yaml", model, tmp_path)


def test_preference_training_runs_from_areals_file(model: Callable[[str], Path], tmp_path: Path) -> None:
    trains("alignment/hhrlhf_dpo.yaml", model, tmp_path)


@pytest.mark.wide
def test_a_reward_model_trains_from_a_file_like_areals(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch
) -> None:
    config = json.loads(json.dumps(CONFIGS["alignment/hhrlhf_dpo.yaml"]))
    config["actor"] = {name: value for name, value in config["actor"].items() if name != "beta"} | {"is_critic": True}
    config["train_dataset"]["type"] = config["valid_dataset"]["type"] = "rw"
    del config["ref"]
    monkeypatch.setitem(CONFIGS, "alignment/hhrlhf_rw.yaml", config)
    trains("alignment/hhrlhf_rw.yaml", model, tmp_path)


@pytest.mark.wide
@pytest.mark.parametrize("file", [file for file in CONFIGS if family(file) and file not in QUICK])
def test_a_file_trains_unless_its_dry_run_refuses_it(file: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(file, tmp_path)
    if areal_files.dry_run(path, file).outcome != "refused":
        trains(file, model, tmp_path)
        return
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path), "--dry-run"])
    assert ended.value.code == 2
