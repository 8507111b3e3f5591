"""AReaL's defaults hold in AReaL's files, in every section that has them, with a decision each."""

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.config.typed import untyped
from archon_core.config.yaml_file import parse_yaml
from archon_train.areal.defaults import fill_in_defaults
from archon_train.experiment import ExperimentConfig

Load = Callable[..., LoadedConfig]


def filled_in(loaded: LoadedConfig) -> dict[str, str]:
    rows = [d for d in loaded.decisions if d.reason.startswith("AReaL's default; ")]
    return {option: d.effective for d in rows for option in d.option.split(", ")}


WHOLE = {
    "gconfig.max_new_tokens": "16384",
    "gconfig.max_tokens": "32768",
    "data.batch_size": "1",
    "cluster.n_nodes": "32",
    "trainer.eval_before_train": "false",
}
FROZEN = {"dtype": "bfloat16", "disable_dropout": "false", "archon.enable_compile": "false"}
TRAINED = FROZEN | {"optimizer.lr": "0.001", "optimizer.warmup_steps_proportion": "0.001"}


def of(role: str, options: dict[str, str]) -> dict[str, str]:
    return {f"{role}.{name}": value for name, value in options.items()}


def test_a_file_without_models_has_the_defaults_of_the_other_sections(load: Load) -> None:
    loaded = load("total_train_epochs: 1\n")
    assert filled_in(loaded) == WHOLE
    config = loaded.config
    assert (config.gconfig.max_new_tokens, config.gconfig.max_tokens, config.data.batch_size) == (16384, 32768, 1)
    assert (config.cluster.n_nodes, config.trainer.eval_before_train) == (32, False)
    assert "actor.dtype" not in loaded.explicit


def test_filling_in_an_option_leaves_the_source_of_its_section(load: Load) -> None:
    sources = load("total_train_epochs: 1\nref: {path: r}\n").sources
    assert sources["ref.dtype"] == "AReaL's default"
    assert sources["ref"].endswith("config.yaml:2")


def test_every_model_has_the_defaults_of_areals_engines(load: Load) -> None:
    loaded = load("total_train_epochs: 1\nactor: {path: a}\ncritic: {optimizer: {lr: 3}}\nref: {dtype: float32}\n")
    expected = WHOLE | of("actor", TRAINED) | of("critic", TRAINED) | of("ref", FROZEN)
    del expected["critic.optimizer.lr"], expected["ref.dtype"]
    assert filled_in(loaded) == expected
    actor, critic, ref = loaded.config.actor, loaded.config.critic, loaded.config.ref
    assert (actor.optimizer.lr, critic.optimizer.lr, critic.optimizer.warmup_steps_proportion) == (0.001, 3, 0.001)
    assert (actor.dtype, critic.dtype, ref.dtype) == ("bfloat16", "bfloat16", "float32")
    assert (actor.disable_dropout, ref.disable_dropout, ref.archon.enable_compile) == (False, False, False)
    [decision] = [d for d in loaded.decisions if "critic.optimizer.warmup_steps_proportion" in d.option]
    assert decision.option == "actor.optimizer.warmup_steps_proportion, critic.optimizer.warmup_steps_proportion"
    assert (decision.requested, decision.reason) == ("left out", "AReaL's default; Archon's is 0.0")


@pytest.mark.parametrize(("kind", "dtype"), [("train", "bfloat16"), ("rollout", None)])
def test_a_teacher_has_them_if_an_engine_runs_it(kind: str, dtype: str | None) -> None:
    tree = parse_yaml(f"teacher: {{engine_type: {kind}, path: t}}\n", "f")
    found = untyped(fill_in_defaults(tree, ExperimentConfig, []))["teacher"]
    assert found.get("dtype") == dtype
    assert "optimizer" not in found


def test_a_section_that_is_null_or_a_reference_stays_as_it_is(load: Load) -> None:
    text = "total_train_epochs: 1\nactor: {optimizer: null}\neval_gconfig: ${gconfig}\ncritic: null\n"
    loaded = load(text)
    assert (loaded.config.actor.optimizer, loaded.config.critic) == (None, None)
    assert filled_in(loaded) == WHOLE | of("actor", FROZEN)
    assert loaded.config.eval_gconfig.max_new_tokens == 16384


def test_evaluation_with_its_own_options_has_its_own_defaults(load: Load) -> None:
    loaded = load("total_train_epochs: 1\neval_gconfig: {n_samples: 8, max_tokens: 99}\n")
    sampling = loaded.config.eval_gconfig
    assert (sampling.n_samples, sampling.max_new_tokens, sampling.max_tokens) == (8, 16384, 99)
    assert load("evaluator: {freq_steps: 1}\n").config.eval_gconfig is None


@pytest.mark.parametrize("algorithm", ["sft", "rw", "dpo"])
def test_algorithms_that_do_not_sample_have_no_sampling_options(load: Load, algorithm: str) -> None:
    loaded = load(f"train_dataset: {{type: {algorithm}}}\n", allow_missing=True)
    assert not [option for option in filled_in(loaded) if "gconfig" in option]


@pytest.mark.parametrize(
    ("role", "backends"),
    [("actor", "actor: {backend: 'archon:d2p2'}"), ("critic", "actor: {backend: 'archon:d2p2'}\ncritic: {path: c}")],
)
def test_the_outer_stages_of_a_pipeline_are_a_layer_shorter(load: Load, role: str, backends: str) -> None:
    loaded = load(f"total_train_epochs: 1\n{backends}\n", [f"{role}.archon.pp_last_stage_less_layers=2"])
    options = getattr(loaded.config, role).archon
    assert (options.pp_first_stage_less_layers, options.pp_last_stage_less_layers) == (1, 2)
    assert filled_in(loaded)[f"{role}.archon.pp_first_stage_less_layers"] == "1"


def test_a_pipeline_of_megatron_has_no_such_default(load: Load) -> None:
    loaded = load("total_train_epochs: 1\nactor: {backend: 'megatron:d2p2'}\nref: {path: r}\n")
    assert loaded.config.actor.archon.pp_first_stage_less_layers is None
    assert not [option for option in filled_in(loaded) if "pp_" in option]


def test_archons_files_have_archons_defaults(load: Load) -> None:
    loaded = load("actor: {path: a}\n")
    assert not loaded.decisions
    assert (loaded.config.actor.optimizer.lr, loaded.config.gconfig.max_new_tokens) == (1e-5, 512)


def test_results_stay_where_archon_puts_them(load: Load) -> None:
    loaded = load("total_train_epochs: 1\n")
    [decision] = [d for d in loaded.decisions if d.option == "cluster.fileroot"]
    assert (loaded.config.cluster.fileroot, decision.effective) == ("runs", "runs")
    assert decision.reason == "Archon's default; AReaL's is /tmp/areal/, and /tmp does not keep results"
