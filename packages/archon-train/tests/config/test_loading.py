import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.config.loading import LoadedConfig, read_tree, to_yaml
from archon_core.config.raw import RawMapping
from archon_core.config.yaml_file import parse_yaml
from archon_core.errors import ConfigError
from archon_core.plugins import ConfigSection, InferenceEngineSpec, Registry, TrainEngineSpec
from archon_core.plugins.loader import load_core
from archon_train.experiment import ROOT, DataConfig, ExperimentConfig, load_config

from .conftest import plugin, rl_plugin, section

Load = Callable[..., LoadedConfig]


def test_a_file_is_merged_over_the_defaults(load: Load) -> None:
    loaded = load("actor: {path: m, eps_clip: 0.3}\nseed: 7\n")
    config = loaded.config
    assert isinstance(config, ExperimentConfig)
    assert (config.seed, config.actor.path, config.actor.eps_clip) == (7, "m", 0.3)
    assert config.actor.backend == "archon:d1"
    assert config.data.batch_size == 32


def test_overrides_win_over_the_file_and_later_ones_over_earlier(load: Load) -> None:
    loaded = load("seed: 1\nactor: {names: [a]}\n", ["seed=2", "+seed=3", "actor.names=[b, c]", "reward=null"])
    assert (loaded.config.seed, loaded.config.actor.names, loaded.config.reward) == (3, ["b", "c"], None)


def test_a_section_can_be_switched_off_and_on(load: Load) -> None:
    assert load("ref: {path: m}\n", ["ref=null"]).config.ref is None
    assert load("ref: null\n", ["ref.path=m"]).config.ref.path == "m"
    assert load("ref: {}\n").config.ref.backend == ""


def test_what_was_written_is_known_and_where(load: Load) -> None:
    loaded = load("actor:\n  archon:\n    enable_compile: true\n", ["seed=2"])
    assert loaded.explicit == {"actor", "actor.archon", "actor.archon.enable_compile", "seed"}
    assert loaded.sources["actor.archon.enable_compile"].endswith("config.yaml:3")
    assert loaded.sources["seed"] == "override 'seed=2'"


def test_references_take_the_value_of_the_other_option_overrides_and_defaults_included(load: Load) -> None:
    text = """
    tokenizer_path: ${actor.path}
    actor: {path: m, dtype: float32}
    ref: {path: "${actor.path}", dtype: "${.path}-x", mb_spec: "${actor.mb_spec}"}
    trial_name: seed-${seed}
    gconfig: {n_samples: "${data.batch_size}"}
    """
    with pytest.raises(ConfigError, match=r"ref\.dtype: found 'other-x'"):
        load(text, ["actor.path=other"])
    config = load(text, ["actor.path=other", "ref.dtype=${actor.dtype}", "actor.mb_spec.n_mbs=4"]).config
    assert (config.tokenizer_path, config.ref.path, config.ref.dtype) == ("other", "other", "float32")
    assert (config.trial_name, config.gconfig.n_samples, config.ref.mb_spec.n_mbs) == ("seed-1", 32, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial_name: ${actr.path}", "config.yaml:1: trial_name: found ${actr.path}, but there is no option actr.path"),
        ("trial_name: ${seed}\nseed: ${trial_name}", "a reference that leads back to itself"),
        (
            "seed: ${trial_name}",
            "seed: found ${trial_name}, whose value does not fit the option; allowed are ${name.of.option}",
        ),
        ("trial_name: ${oc.create:{a:1}}", "trial_name: found ${oc.create:{a:1}}, whose value does not fit the option"),
        ("trial_name: ${env:HOME}", "found the resolver 'env' in a reference; allowed are ${name.of.option}"),
        ("trial_name: ${open", "found a reference that cannot be read"),
        ("trial_name: ${oc.env:ARCHON_NO_SUCH}", "the environment has no ARCHON_NO_SUCH; set it"),
    ],
)
def test_a_reference_to_nothing_is_refused_with_the_option_that_holds_it(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(text)
    assert message in str(error.value)


def test_the_environment_can_be_referred_to(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHON_TEST_ROOT", "/data")
    assert load("cluster: {fileroot: '${oc.env:ARCHON_TEST_ROOT}/runs'}").config.cluster.fileroot == "/data/runs"


def test_all_mistakes_are_in_one_message(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load("actor:\n  pth: m\n  mb_spec: {n_mbs: two}\nsed: 1\n", ["actor.eps_clp=1"])
    lines = str(error.value).splitlines()
    assert lines[0] == "4 problems:"
    assert "config.yaml:2: unknown option actor.pth; did you mean 'path'?" in lines[1]
    assert "config.yaml:3: actor.mb_spec.n_mbs: found 'two'; allowed is a whole number" in lines[2]
    assert lines[3] == "- override 'actor.eps_clp=1': unknown option actor.eps_clp; did you mean 'eps_clip'?"
    assert "config.yaml:4: unknown option sed; did you mean 'seed'?" in lines[4]


def test_values_that_are_not_allowed_are_reported_with_their_lines(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load("actor:\n  optimizer:\n    lr_scheduler_type: cosin\n", ["gconfig.top_p=2"])
    text = str(error.value)
    assert (
        "config.yaml:3: actor.optimizer.lr_scheduler_type: found 'cosin'; allowed are constant, linear, cosine" in text
    )
    assert "did you mean 'cosine'?" in text
    assert "override 'gconfig.top_p=2': gconfig.top_p: found 2.0; allowed are numbers above 0 up to 1" in text


def test_an_option_of_a_package_that_is_not_installed_names_it(
    load: Load, make_registry: Callable[..., Registry]
) -> None:
    bare = make_registry()
    with pytest.raises(ConfigError) as error:
        load("actor: {eps_clip: 0.3, pth: m}\n", plugins=bare)
    assert "actor.eps_clip: part of archon-rl, which is not installed: pip install archon-rl" in str(error.value)
    assert "unknown option actor.pth" in str(error.value)
    loaded = load(
        "actor: {eps_clip: 0.3, path: '${sglang.x}'}\nsglang: {x: m}\nrollout: {backend: sglang:d1}\n",
        plugins=bare,
        allow_missing=True,
    )
    assert [str(option).partition(",")[0] for option in loaded.missing] == [
        "actor.eps_clip: part of archon-rl",
        "sglang: part of archon-sglang",
    ]
    assert loaded.config.actor.path == "m", "a reference to what was taken out keeps its text"


def test_an_option_that_an_installed_package_should_have_asks_for_a_newer_one(
    load: Load, make_registry: Callable[..., Registry]
) -> None:
    driver = plugin("sglang", InferenceEngineSpec(name="sglang", target="json:loads", letters="dt"))
    plugins = make_registry(rl_plugin(), driver)
    loaded = load("rollout: {backend: 'sglang:d1'}\nsglang: {a: 1}\n", plugins=plugins, allow_missing=True)
    (option,) = loaded.missing
    assert option.package.matter == "is installed (0.1.0) but does not have it; a newer version may"
    assert option.package.command == "pip install --upgrade archon-sglang"


def test_an_option_of_a_plugin_that_failed_says_why(load: Load, make_registry: Callable[..., Registry]) -> None:
    failed = make_registry(plugin("rl", status="failed", cause="importing it raised ImportError: no numpy"))
    with pytest.raises(ConfigError, match="archon-rl, which is installed but failed: importing it raised ImportError"):
        load("actor: {eps_clip: 0.3}\n", plugins=failed)


def test_an_option_of_what_is_installed_and_not_used_has_no_effect_and_says_so(load: Load) -> None:
    loaded = load("algorithm: sft\nactor: {eps_clip: 0.3}\ndata: {puzzle: {size: 5}}\nvllm: {a: 1}\n")
    reasons = {decision.option: decision.reason for decision in loaded.decisions}
    assert reasons == {
        "actor.eps_clip": "only algorithm grpo has this option; algorithm is sft",
        "data.puzzle": "only dataset puzzle has this option; data.dataset is jsonl",
        "vllm": "only inference engine vllm has this option; rollout.backend is local",
    }


def test_a_misspelt_option_is_no_option_of_an_engine_that_shares_its_section(
    load: Load, make_registry: Callable[..., Registry]
) -> None:
    shared = ConfigSection("actor", "archon_engine.options.archon:ArchonEngineConfig")
    other = plugin("other", TrainEngineSpec(name="other", target="json:loads", config=(shared,)))
    with pytest.raises(ConfigError, match=r"unknown option actor\.archon\.ac_mod; did you mean 'ac_mode'"):
        load("actor: {archon: {ac_mod: full}}\n", plugins=make_registry(rl_plugin(), other))


def test_a_broken_section_of_a_plugin_is_a_warning_and_explains_unknown_options(
    load: Load, make_registry: Callable[..., Registry]
) -> None:
    broken = plugin("x", InferenceEngineSpec(name="local", target="json:loads", config=(section("x", "Nothing"),)))
    plugins = make_registry(rl_plugin(), broken)
    (warning,) = load("seed: 1\n", plugins=plugins).warnings
    assert warning.startswith("section 'x' of archon-x")
    with pytest.raises(ConfigError, match=r"unknown option x[\s\S]*not read: section 'x' of archon-x"):
        load("x: {a: 1}\n", plugins=plugins)


def test_a_check_in_a_plugins_dataclass_reaches_the_user(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"actor\.eps_clip: found 13; allowed is any other number"):
        load("actor: {eps_clip: 13}\n")


def test_the_registry_of_the_process_is_the_default(write: Callable[[str], Path]) -> None:
    assert load_config(write("seed: 4\n"), ["seed=5"]).config.seed == 5


def test_the_resolved_configuration_loads_to_itself(
    load: Load, write: Callable[[str], Path], registry: Registry
) -> None:
    loaded = load(
        "actor: {path: m, norm: {level: off}, model_config: {a: [1, x, 1.5, null], b: '1e3'}}\nref: {optimizer: null}\n"
        "trial_name: ${experiment_name}\n"
    )
    again = load_config(write(loaded.to_yaml()), (), registry)
    assert again.config == loaded.config
    assert not again.decisions


def test_an_unknown_name_with_a_dot_at_its_end_is_an_error_beside_names_of_areal(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"actor\.0\."):
        load("actor: {path: m, _version: '', '0.': []}\n")


CORE_ONLY = Registry([load_core()])


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        DataConfig,
        path=st.none()
        # '~NAME' is the home folder of a user, who must exist.
        | st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=15).filter(
            lambda t: not t.startswith("~")
        ),
        prompt_key=st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=15),
        answer_key=st.sampled_from(
            ["off", "1e4", "null", "~", "", " x ", "${seed}", "\\${a}", "\\\\${b", "a: b", "# c", "'", "???x"]
        ),
        batch_size=st.integers(1, 10**9),
        shuffle=st.booleans(),
    )
)
def test_any_text_survives_being_written_and_read_again(data: DataConfig) -> None:
    config = dataclasses.replace(ExperimentConfig(), data=data)
    again = read_tree(parse_yaml(to_yaml(config), "f"), RawMapping({}), CORE_ONLY, root=ROOT).config
    assert again == config
