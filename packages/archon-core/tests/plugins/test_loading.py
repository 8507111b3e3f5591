"""One broken plugin is reported with its distribution, version and cause; the others keep working."""

from __future__ import annotations

import pytest

from archon_core.errors import PluginError, UnknownNameError
from archon_core.plugins import PLUGIN_API, AlgorithmSpec, ModelSpec, RewardSpec
from archon_core.plugins.hookspecs import PROJECT_NAME
from archon_core.plugins.kinds import SPEC_TYPES
from archon_core.plugins.loader import explain_incompatible
from archon_core.plugins.status import PluginStatus

WORKING = """
@hookimpl
def archon_rewards():
    return [RewardSpec(name="length", target="working.rewards:length", aliases=("len",))]
"""


def status_of(registry, name):
    return next(plugin for plugin in registry.plugins if plugin.name == name)


def test_every_kind_of_spec_has_a_hook_of_its_own_that_pluggy_knows():
    import pluggy

    from archon_core.plugins import hookspecs

    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    hooks = {spec_type.hook for spec_type in SPEC_TYPES}
    assert len(hooks) == len(SPEC_TYPES) == 23
    assert all(getattr(manager.hook, hook).has_spec() for hook in hooks)


def test_a_plugin_provides_its_specs_under_names_and_aliases(site, build):
    site.install("archon-working", WORKING, version="1.2")
    registry = build()
    plugin = status_of(registry, "working")
    assert (plugin.status, plugin.distribution, plugin.version) == ("loaded", "archon-working", "1.2")
    assert registry.get("reward", "length") is registry.get(RewardSpec, "len")
    assert registry.origin(registry.get("reward", "length")) == "archon-working"


def test_core_provides_its_own_commands_without_any_plugin(build):
    registry = build()
    assert [plugin.name for plugin in registry.plugins] == ["core"]
    assert {spec.kind for spec in registry.plugins[0].specs} == {"command"}
    doctor = registry.get("command", "doctor")
    assert doctor.target == "archon_core.cli.doctor:doctor"
    assert registry.origin(doctor) == "archon-core"


def test_a_plugin_that_does_not_import_leaves_the_others_working(site, build):
    site.install("archon-broken", 'raise RuntimeError("no such accelerator")', version="3.1")
    site.install("archon-working", WORKING)
    registry = build()
    broken = status_of(registry, "broken")
    assert (broken.status, broken.distribution, broken.version) == ("failed", "archon-broken", "3.1")
    assert "RuntimeError: no such accelerator" in broken.cause
    assert registry.get("reward", "length").name == "length"


def test_a_plugin_that_exits_the_interpreter_while_it_is_imported_only_fails(site, build):
    site.install("archon-broken", "raise SystemExit(3)")
    assert status_of(build(), "broken").status == "failed"


def test_a_missing_dependency_is_answered_by_the_command_that_installs_it(site, build):
    site.install("archon-broken", "import a_package_that_is_not_there")
    cause = status_of(build(), "broken").cause
    assert "a_package_that_is_not_there" in cause
    assert "pip install --upgrade archon-broken" in cause


def test_a_plugin_that_needs_a_newer_core_says_so(site, build):
    site.install("archon-broken", "from archon_core.plugins import SpecOfTheFuture")
    assert "pip install --upgrade archon-core" in status_of(build(), "broken").cause


def test_looking_up_what_a_failed_plugin_may_provide_repeats_its_reason(site, build):
    site.install("archon-broken", 'raise RuntimeError("no such accelerator")', version="3.1")
    with pytest.raises(UnknownNameError, match=r"archon-broken 3\.1.*failed.*no such accelerator"):
        build().get("reward", "brevity")


def test_a_hook_that_raises_fails_its_plugin_alone(site, build):
    source = """
    @hookimpl
    def archon_models():
        return [ModelSpec(name="fine", target="a.b:c")]

    @hookimpl
    def archon_rewards():
        raise KeyError("table")
    """
    site.install("archon-broken", source)
    site.install("archon-working", WORKING)
    registry = build()
    broken = status_of(registry, "broken")
    assert broken.status == "failed"
    assert "archon_rewards" in broken.cause
    assert "KeyError: 'table'" in broken.cause
    assert broken.specs == ()
    assert registry.get("reward", "length").name == "length"


def test_a_hook_that_raises_while_its_result_is_read_fails_its_plugin_alone(site, build):
    source = """
    @hookimpl
    def archon_rewards():
        yield RewardSpec(name="first", target="a.b:c")
        raise ValueError("second")
    """
    site.install("archon-broken", source)
    assert "ValueError: second" in status_of(build(), "broken").cause


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ('RewardSpec(name="x", target="a.b:c")', "return a list of RewardSpec"),
        ('[DatasetSpec(name="x", target="a.b:c")]', "every item is a RewardSpec"),
        ("42", "return a list of RewardSpec"),
        ('[RewardSpec(name="", target="a.b:c")]', "text without spaces"),
        ('[RewardSpec(name="x", target="a.b.c")]', "package.module:attribute"),
        ('[RewardSpec(name="x", target="a.b:c", aliases=("x",))]', "equal to its name"),
    ],
)
def test_a_hook_that_returns_something_else_is_told_what_to_return(site, build, returned, said):
    site.install("archon-broken", f"@hookimpl\ndef archon_rewards():\n    return {returned}\n")
    broken = status_of(build(), "broken")
    assert broken.status == "failed"
    assert said in broken.cause


def test_a_hook_with_arguments_that_archon_does_not_give_is_refused(site, build):
    site.install("archon-broken", "@hookimpl\ndef archon_rewards(config):\n    return []\n")
    assert "archon_rewards" in status_of(build(), "broken").cause


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("@hookimpl\ndef archon_model():\n    return []\n", "not a hook of Archon; did you mean 'archon_models'"),
        ("def archon_rewards():\n    return []\n", "put @hookimpl"),
        ("def archon_reward():\n    return []\n", "did you mean 'archon_rewards'"),
        ("def archon_zzz():\n    return []\n", "kept for hooks"),
    ],
)
def test_a_misspelt_hook_is_reported_and_named_when_a_lookup_fails(site, build, source, said):
    site.install("archon-misspelt", source)
    registry = build()
    plugin = status_of(registry, "misspelt")
    assert plugin.status == "loaded"
    assert len(plugin.problems) == 1
    assert said in plugin.problems[0]
    with pytest.raises(UnknownNameError) as raised:
        registry.get("reward", "brevity")
    assert said in str(raised.value)


def test_a_hook_of_a_newer_plugin_api_may_be_marked_optional(site, build):
    site.install("archon-newer", "@hookimpl(optionalhook=True)\ndef archon_holograms():\n    return []\n")
    assert status_of(build(), "newer").problems == ()


def test_a_function_that_a_plugin_imports_is_not_taken_for_a_misspelt_hook(site, build):
    (site.path / "toolbox.py").write_text("def archon_version():\n    return 1\n")
    site.install("archon-fine", "from toolbox import archon_version\n")
    assert status_of(build(), "fine").problems == ()


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ('ARCHON_PLUGIN_API = "1.1"', "pip install --upgrade archon-core"),
        ('ARCHON_PLUGIN_API = "2.0"', "pip install --upgrade archon-core"),
        ('ARCHON_PLUGIN_API = "0.9"', "pip install --upgrade archon-other"),
        ("ARCHON_PLUGIN_API = 1.0", "not of the form"),
        ("", 'adds ARCHON_PLUGIN_API = "1.0" to archon_other_plugin'),
    ],
)
def test_a_plugin_for_another_api_is_incompatible_with_the_command_that_mends_it(site, build, declaration, said):
    header = f"from archon_core.plugins import *\n{declaration}\n"
    site.install("archon-other", WORKING, header=header)
    other = status_of(build(), "other")
    assert other.status == "incompatible"
    assert said in other.cause
    assert other.specs == ()


@pytest.mark.parametrize("minor", range(PLUGIN_API[1] + 1))
def test_every_minor_api_up_to_cores_is_compatible(minor):
    plugin = PluginStatus("x", "archon-x", "1.0", "x")
    assert explain_incompatible(f"{PLUGIN_API[0]}.{minor}", plugin) == ""


def test_an_entry_point_may_name_an_object_whose_module_declares_the_api(site, build):
    source = """
    class Plugin:
        @hookimpl
        def archon_rewards(self):
            return [RewardSpec(name="length", target="a.b:c")]

    plugin = Plugin()
    """
    module = "archon_object_plugin"
    site.install("archon-object", source, entry_points=f"[archon]\nobject = {module}:plugin\n")
    assert build().get("reward", "length").origin == "archon-object"


def test_a_damaged_entry_points_file_is_one_failed_plugin(site, build):
    site.install("archon-damaged", "", entry_points="[archon]\nno equals sign here\n")
    site.install("archon-working", WORKING)
    registry = build()
    damaged = status_of(registry, "archon-damaged")
    assert damaged.status == "failed"
    assert "pip install --force-reinstall --no-deps archon-damaged" in damaged.cause
    assert registry.get("reward", "length").name == "length"


def test_a_damaged_entry_points_file_of_a_stranger_is_nothing_to_us(site, build):
    site.install("stranger", "", entry_points="[console_scripts]\nno equals sign here\n")
    assert [plugin.name for plugin in build().plugins] == ["core"]


def test_the_first_of_two_copies_of_a_distribution_counts(site, build):
    site.install("archon-working", WORKING)
    copy = site.path / "archon_working-0.9.dist-info"
    copy.mkdir()
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: archon_working\nVersion: 0.9\n")
    (copy / "entry_points.txt").write_text("[archon]\nworking = archon_working_plugin\n")
    assert [plugin.name for plugin in build().plugins] == ["core", "working"]


def test_a_target_that_does_not_exist_names_the_distribution_when_it_is_loaded(site, build):
    source = """
    @hookimpl
    def archon_rewards():
        return [RewardSpec(name="absent", target="archon_hollow_plugin:absent")]

    @hookimpl
    def archon_schedules():
        return [ScheduleSpec(name="absent", target="a_package_that_is_not_there.schedule:build")]

    @hookimpl
    def archon_models():
        return [ModelSpec(name="half", target="archon_hollow_plugin:hookimpl", arguments="archon_hollow_plugin:absent")]
    """
    site.install("archon-hollow", source)
    registry = build()
    for kind, name in (("reward", "absent"), ("schedule", "absent"), ("model", "half")):
        with pytest.raises(PluginError, match=r"of archon-hollow.*pip install --upgrade archon-hollow"):
            registry.get(kind, name).load()


def test_a_target_whose_module_raises_names_the_distribution(site, build):
    (site.path / "explosive.py").write_text('raise RuntimeError("bang")\n')
    site.install(
        "archon-hollow", '@hookimpl\ndef archon_rewards():\n    return [RewardSpec("loud", "explosive:reward")]\n'
    )
    with pytest.raises(PluginError, match=r"of archon-hollow.*RuntimeError: bang"):
        build().get("reward", "loud").load()


def test_a_plugin_module_that_imports_torch_is_reported(site, build, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    (site.path / "torch.py").write_text("")
    site.install("archon-heavy", "import torch\n" + WORKING)
    registry = build()
    assert "imports torch" in status_of(registry, "heavy").problems[0]
    assert registry.get("reward", "length").name == "length"


def test_what_a_plugin_prints_stays_out_of_the_output_of_commands(site, build, capsys):
    site.install("archon-talkative", "print('hello')\n" + WORKING)
    assert status_of(build(), "talkative").status == "loaded"
    assert capsys.readouterr() == ("", "hello\n")


def test_a_part_that_a_spec_leaves_empty_is_named_when_it_is_needed():
    model = ModelSpec(name="own", target="json:loads", arguments="json:loads", origin="archon-own")
    with pytest.raises(
        PluginError, match="model 'own' of archon-own: its weight_map is empty; set it in the ModelSpec to"
    ):
        model.load()
    with pytest.raises(PluginError, match="algorithm 'mine': its trainer is empty"):
        AlgorithmSpec(name="mine", target="json:loads").load_trainer()
