"""Lookups: duplicates, unknown names, disabling, strict mode, registration in process, models by type."""

from __future__ import annotations

import pytest

from archon_core.errors import ConfigError, PluginError, UnknownNameError
from archon_core.plugins import AlgorithmSpec, ModelSpec, RewardSpec, ScheduleSpec, TrainEngineSpec


def reward_plugin(*names: str, aliases: tuple[str, ...] = ()) -> str:
    specs = ", ".join(f'RewardSpec(name="{name}", target="a.b:{name}", aliases={aliases})' for name in names)
    return f"@hookimpl\ndef archon_rewards():\n    return [{specs}]\n"


def model_plugin(name: str, *model_types: str) -> str:
    return (
        "@hookimpl\ndef archon_models():\n"
        f'    return [ModelSpec(name="{name}", target="a.b:c", model_types={tuple(model_types)})]\n'
    )


class TestDuplicates:
    def test_a_name_of_two_plugins_belongs_to_neither_and_the_rest_keeps_working(self, site, build):
        site.install("archon-left", reward_plugin("shared", "left_only"), version="1.0")
        site.install("archon-right", reward_plugin("shared", "right_only"), version="2.0")
        registry = build()
        with pytest.raises(PluginError) as raised:
            registry.get("reward", "shared")
        message = str(raised.value)
        assert "archon-left 1.0" in message
        assert "archon-right 2.0" in message
        assert "ARCHON_DISABLE_PLUGINS=left or ARCHON_DISABLE_PLUGINS=right" in message
        assert [spec.name for spec in registry.all("reward")] == ["left_only", "right_only"]
        assert registry.get("reward", "right_only").origin == "archon-right"

    def test_both_plugins_are_shown_with_the_clash(self, site, build):
        site.install("archon-left", reward_plugin("shared"))
        site.install("archon-right", reward_plugin("shared"))
        clashing = [plugin.name for plugin in build().plugins if any("'shared'" in text for text in plugin.problems)]
        assert clashing == ["left", "right"]

    def test_disabling_one_of_them_gives_the_name_to_the_other(self, site, build):
        site.install("archon-left", reward_plugin("shared"))
        site.install("archon-right", reward_plugin("shared"))
        assert build(ARCHON_DISABLE_PLUGINS="left").get("reward", "shared").origin == "archon-right"

    def test_an_alias_clashes_with_a_name(self, site, build):
        site.install("archon-left", reward_plugin("brevity", aliases=("short",)))
        site.install("archon-right", reward_plugin("short"))
        registry = build()
        with pytest.raises(PluginError, match=r"archon-left.*archon-right"):
            registry.get("reward", "short")
        assert registry.get("reward", "brevity").origin == "archon-left"

    def test_the_same_name_in_two_kinds_is_no_clash(self, site, build):
        source = '@hookimpl\ndef archon_datasets():\n    return [DatasetSpec(name="shared", target="a.b:c")]\n'
        site.install("archon-left", reward_plugin("shared"))
        site.install("archon-right", source)
        registry = build()
        assert registry.get("dataset", "shared").origin == "archon-right"
        assert registry.get("reward", "shared").origin == "archon-left"

    def test_a_name_twice_in_one_plugin_is_a_clash_too(self, site, build):
        site.install("archon-left", reward_plugin("twice", "twice"))
        with pytest.raises(PluginError, match=r"archon-left 1\.0 \(left\) and archon-left 1\.0 \(left\)"):
            build().get("reward", "twice")

    def test_plugins_of_one_name_are_told_apart_by_their_distributions(self, site, build):
        site.install("archon-left", reward_plugin("shared"), name="rewards")
        site.install("archon-right", reward_plugin("shared"), name="rewards")
        with pytest.raises(PluginError, match="PLUGINS=archon-left or ARCHON_DISABLE_PLUGINS=archon-right"):
            build().get("reward", "shared")
        assert build(ARCHON_DISABLE_PLUGINS="archon-left").get("reward", "shared").origin == "archon-right"

    def test_a_clash_with_core_is_the_plugins_problem_and_core_cannot_be_left_out(self, site, build):
        source = '@hookimpl\ndef archon_commands():\n    return [CommandSpec(name="doctor", target="a.b:c")]\n'
        site.install("archon-usurper", source)
        registry = build()
        problems = {plugin.name: plugin.problems for plugin in registry.plugins}
        assert problems["core"] == ()
        assert problems["usurper"][0].endswith("leave one of them out: ARCHON_DISABLE_PLUGINS=usurper")
        with pytest.raises(PluginError, match=r"archon-core .* and archon-usurper"):
            registry.get("command", "doctor")


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("kind", "name", "package"),
        [
            ("schedule", "Interleaved1F1B", "archon-pipeline"),
            ("schedule", "ZBV", "archon-pipeline"),
            ("model", "qwen3_moe", "archon-models-qwen"),
            ("moe", "moe", "archon-moe"),
            ("algorithm", "grpo", "archon-rl"),
            ("inference_engine", "sglang", "archon-sglang"),
            ("train_engine", "archon", "archon-engine"),
            ("train_engine", "fsdp", "archon-models-hf"),
            ("command", "train", "archon-train"),
            ("command", "generate", "archon-rollout"),
            ("launcher", "ray", "archon-ray"),
        ],
    )
    def test_a_name_of_a_package_that_is_not_installed_names_the_package(self, build, kind, name, package):
        with pytest.raises(UnknownNameError, match=f"It is part of {package}: pip install {package}"):
            build().get(kind, name)

    @pytest.mark.parametrize(
        ("explain", "text"),
        [
            ("json:dumps", '; "dpoo"'),
            ("no_such_module:explain", "; target 'no_such_module:explain'"),
        ],
    )
    def test_an_algorithms_plugin_explains_a_name_that_is_no_algorithms(self, build, explain, text):
        registry = build()
        registry.add(AlgorithmSpec(name="dpo", target="a.b:c", explain=explain))
        with pytest.raises(UnknownNameError, match="Installed algorithms: dpo") as raised:
            registry.get("algorithm", "dpoo")
        assert f"no installed plugin provides it{text}" in str(raised.value)
        assert "did you mean" not in str(raised.value)

    def test_a_misspelt_name_of_a_package_that_is_not_installed_names_the_package(self, build):
        with pytest.raises(
            UnknownNameError, match=r"did you mean 'ray'\? That is part of archon-ray: pip install archon-ray"
        ):
            build().get("launcher", "rayy")

    def test_a_package_that_is_installed_and_lacks_the_name_is_to_be_upgraded(self, site, build):
        site.install("archon-models-qwen", model_plugin("qwen3", "qwen3"), version="0.1")
        with pytest.raises(UnknownNameError, match=r"archon-models-qwen 0\.1.*does not have it.*--upgrade"):
            build().get("model", "qwen3_moe")

    def test_a_package_that_is_installed_and_failed_is_named_with_its_cause(self, site, build):
        site.install("archon-models-qwen", 'raise RuntimeError("half an upload")')
        with pytest.raises(UnknownNameError) as raised:
            build().get("model", "qwen3")
        assert "installed but not loaded" in str(raised.value)
        assert "half an upload" in str(raised.value)
        assert "pip install archon-models-qwen" not in str(raised.value)

    def test_what_a_disabled_package_has_is_said_to_be_disabled(self, site, build):
        site.install("archon-models-qwen", model_plugin("qwen3", "qwen3"))
        with pytest.raises(UnknownNameError, match=r"disabled by ARCHON_DISABLE_PLUGINS"):
            build(ARCHON_DISABLE_PLUGINS="models-qwen").get("model", "qwen3")

    def test_a_failed_package_of_ours_is_not_blamed_for_what_it_never_had(self, site, build):
        site.install("archon-models-qwen", 'raise RuntimeError("half an upload")')
        with pytest.raises(UnknownNameError) as raised:
            build().get("schedule", "ZBV")
        assert "half an upload" not in str(raised.value)

    def test_a_misspelt_name_gets_the_nearest_one_whatever_its_case_and_the_list(self, site, build):
        site.install("archon-left", reward_plugin("Brevity", "clarity"))
        with pytest.raises(UnknownNameError, match=r"did you mean 'Brevity'\?\nInstalled rewards: Brevity, clarity"):
            build().get("reward", "brevty")

    def test_a_misspelt_name_of_a_package_that_is_not_installed_gets_both(self, build):
        with pytest.raises(UnknownNameError, match=r"did you mean 'ZBV'.*pip install archon-pipeline"):
            build().get("schedule", "zvb")

    def test_a_name_like_no_other_says_what_there_is(self, build):
        with pytest.raises(UnknownNameError, match="No schedule is available; archon-pipeline brings some"):
            build().get("schedule", "spiral")

    def test_an_unknown_kind_is_answered_with_the_kinds(self, build):
        with pytest.raises(UnknownNameError, match="'schedules' is no kind of spec; allowed are model, schedule"):
            build().get("schedules", "ZBV")


class TestDisabling:
    def test_a_disabled_plugin_is_not_even_imported(self, site, build):
        site.install("archon-broken", 'raise RuntimeError("imported")')
        plugin = build(ARCHON_DISABLE_PLUGINS="broken").plugins[1]
        assert (plugin.name, plugin.status) == ("broken", "disabled")

    def test_all_leaves_core_alone(self, site, build):
        site.install("archon-left", reward_plugin("left"))
        registry = build(ARCHON_DISABLE_PLUGINS="all")
        assert [plugin.status for plugin in registry.plugins] == ["loaded", "disabled"]
        assert registry.get("command", "doctor").origin == "archon-core"

    def test_names_are_compared_as_pip_does_and_separated_by_commas(self, site, build):
        site.install("archon-left", reward_plugin("left"))
        site.install("archon-right", reward_plugin("right"))
        registry = build(ARCHON_DISABLE_PLUGINS="Archon_Left, right,")
        assert [plugin.status for plugin in registry.plugins] == ["loaded", "disabled", "disabled"]

    def test_a_name_that_no_plugin_has_is_reported(self, site, build):
        site.install("archon-left", reward_plugin("left"))
        assert build(ARCHON_DISABLE_PLUGINS="lefd").problems == (
            "ARCHON_DISABLE_PLUGINS: found 'lefd', which disables nothing; allowed are all, left; "
            "correct or remove the name; did you mean 'left'?",
        )

    def test_a_plugin_whose_entry_points_cannot_be_read_can_be_disabled(self, site, build):
        site.install("archon-damaged", "", entry_points="[archon]\nno equals sign here\n")
        registry = build(ARCHON_DISABLE_PLUGINS="archon-damaged", ARCHON_STRICT_PLUGINS="1")
        assert registry.plugins[1].status == "disabled"


class TestStrictMode:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ('raise RuntimeError("no such accelerator")', "no such accelerator"),
            ("ARCHON_PLUGIN_API = '2.0'", "made for plugin API 2.0"),
            ("@hookimpl\ndef archon_model():\n    return []\n", "did you mean 'archon_models'"),
            (reward_plugin("twice", "twice"), "'twice' is provided by"),
        ],
    )
    def test_a_problem_raises_at_once_and_names_the_distribution(self, site, build, source, said):
        site.install("archon-broken", source)
        build()
        with pytest.raises(PluginError, match="archon-broken") as raised:
            build(ARCHON_STRICT_PLUGINS="1")
        assert said in str(raised.value)

    def test_the_original_error_is_kept_for_the_traceback(self, site, build):
        site.install("archon-broken", 'raise RuntimeError("no such accelerator")')
        with pytest.raises(PluginError) as raised:
            build(ARCHON_STRICT_PLUGINS="1")
        assert isinstance(raised.value.__cause__, RuntimeError)

    def test_a_disabled_name_that_no_plugin_has_raises(self, build):
        with pytest.raises(PluginError, match="found 'absent', which disables nothing"):
            build(ARCHON_STRICT_PLUGINS="1", ARCHON_DISABLE_PLUGINS="absent")

    def test_sound_and_disabled_plugins_do_not_raise(self, site, build):
        site.install("archon-left", reward_plugin("left"))
        site.install("archon-broken", "raise RuntimeError")
        registry = build(ARCHON_STRICT_PLUGINS="1", ARCHON_DISABLE_PLUGINS="broken")
        assert registry.get("reward", "left").name == "left"

    def test_a_value_that_is_neither_yes_nor_no_is_refused(self, build):
        with pytest.raises(PluginError, match="ARCHON_STRICT_PLUGINS: found 'maybe'; allowed are 1 and 0"):
            build(ARCHON_STRICT_PLUGINS="maybe")


class TestInProcess:
    spec = RewardSpec(name="mine", target="builtins:len", aliases=("my",))

    def test_an_added_spec_is_found_loaded_and_listed(self, build):
        registry = build()
        registry.add(self.spec)
        assert registry.get("reward", "my").load() is len
        assert registry.origin(registry.get("reward", "mine")) == "this process"
        assert registry.all(RewardSpec) == [self.spec]
        assert registry.plugins[-1].distribution == "this process"

    def test_adding_an_equal_spec_again_changes_nothing_so_that_a_cell_can_be_run_twice(self, build):
        registry = build()
        registry.add(self.spec)
        registry.add(RewardSpec(name="mine", target="builtins:len", aliases=("my",)))
        assert len(registry.all("reward")) == 1

    def test_another_spec_of_the_name_needs_the_first_to_be_removed(self, build):
        registry = build()
        registry.add(self.spec)
        changed = RewardSpec(name="mine", target="builtins:max")
        with pytest.raises(PluginError, match=r"registry\(\)\.remove\('reward', 'mine'\)"):
            registry.add(changed)
        registry.remove("reward", "mine")
        registry.add(changed)
        assert registry.get("reward", "mine").load() is max
        with pytest.raises(UnknownNameError):
            registry.get("reward", "my")

    def test_a_name_that_a_plugin_has_is_refused_and_the_plugins_stays(self, site, build):
        site.install("archon-left", reward_plugin("taken"))
        registry = build()
        with pytest.raises(PluginError, match=r"archon-left 1\.0"):
            registry.add(RewardSpec(name="free", target="builtins:len", aliases=("taken",)))
        assert registry.get("reward", "taken").origin == "archon-left"
        assert [spec.name for spec in registry.all("reward")] == ["taken"]

    def test_what_a_plugin_provides_cannot_be_removed(self, site, build):
        site.install("archon-left", reward_plugin("theirs"))
        with pytest.raises(UnknownNameError, match=r"was not added in this process.*ARCHON_DISABLE_PLUGINS"):
            build().remove("reward", "theirs")

    @pytest.mark.parametrize("spec", ["mine", RewardSpec(name="a b", target="a.b:c"), RewardSpec("x", "no colon")])
    def test_a_malformed_spec_is_refused(self, build, spec):
        with pytest.raises(PluginError):
            build().add(spec)


class TestModelFor:
    def test_a_model_is_found_by_its_model_type(self, site, build):
        site.install("archon-left", model_plugin("left", "left_dense", "left_tied"))
        assert build().model_for("left_tied").name == "left"

    def test_two_models_for_one_type_are_both_named_and_the_option_that_chooses(self, site, build):
        site.install("archon-left", model_plugin("left", "shared"))
        site.install("archon-right", model_plugin("right", "shared"))
        registry = build()
        with pytest.raises(PluginError, match=r"left \(archon-left\), right \(archon-right\).*actor\.archon\.model="):
            registry.model_for("shared")
        assert registry.model_for("shared", "right").origin == "archon-right"

    def test_a_model_that_does_not_serve_the_type_cannot_be_chosen_for_it(self, site, build):
        site.install("archon-left", model_plugin("left", "dense"))
        with pytest.raises(UnknownNameError, match="serves the model types dense, not 'other'"):
            build().model_for("other", "left")

    def test_a_model_without_types_is_chosen_only_by_name_and_takes_any(self, site, build):
        site.install("archon-left", model_plugin("anything"))
        registry = build()
        assert registry.model_for("other", "anything").name == "anything"
        with pytest.raises(UnknownNameError):
            registry.model_for("other")

    def test_a_type_of_a_package_that_is_not_installed_names_the_package(self, build):
        with pytest.raises(UnknownNameError, match=r"model type 'qwen3'.*pip install archon-models-qwen"):
            build().model_for("qwen3")

    def test_a_type_that_nothing_serves_gets_the_served_ones_and_alternatives(self, site, build):
        site.install("archon-left", model_plugin("left", "falcon"))
        with pytest.raises(UnknownNameError) as raised:
            build().model_for("falcn")
        message = str(raised.value)
        assert "did you mean 'falcon'" in message
        assert "Installed model types: falcon" in message
        assert "with an fsdp: backend in place of archon:" in message
        assert "archon:" in message
        assert "actor.archon.model=hf" in message
        assert "archon new model NAME --from-hf CONFIG" in message
        assert "pip install archon-models-hf" in message
        assert "pip install archon-scaffold" in message

    def test_a_clash_of_names_is_not_resolved_by_the_model_type(self, site, build):
        site.install("archon-left", model_plugin("same", "shared"))
        site.install("archon-right", model_plugin("same", "shared"))
        with pytest.raises(PluginError, match="model 'same' is provided by"):
            build().model_for("shared")


def test_an_engine_may_run_one_model_whatever_is_served():
    engine = TrainEngineSpec(name="other", target="a.b:c", model="theirs")
    assert engine.chosen_model(None, option="actor.archon.model") == "theirs"
    assert engine.chosen_model("theirs", option="actor.archon.model") == "theirs"
    with pytest.raises(ConfigError, match=r"actor\.archon\.model: found 'mine'; engine 'other' runs model 'theirs'"):
        engine.chosen_model("mine", option="actor.archon.model")
    assert TrainEngineSpec(name="any", target="a.b:c").chosen_model("mine", option="actor.archon.model") == "mine"


def test_kinds_are_named_by_text_or_by_class(build):
    registry = build()
    registry.add(ScheduleSpec(name="mine", target="a.b:c"))
    registry.add(ModelSpec(name="mine", target="a.b:c"))
    assert registry.get(ScheduleSpec, "mine") is registry.get("schedule", "mine")
    assert registry.all(ModelSpec) == registry.all("model")
