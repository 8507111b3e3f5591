"""Which names packages may have."""

import pytest

from archon_core.errors import ConfigError
from archon_core.plugins import RewardSpec, registry
from archon_scaffold.names import check_name


def test_a_name_has_one_form_for_users_and_one_for_imports():
    name = check_name("demo-llama", "model")
    assert (name.spec, name.module, name.title) == ("demo-llama", "demo_llama", "Demo llama")
    assert check_name("demo_llama", "model") == name


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("Demo", "demo"),
        ("my llama", "my-llama"),
        ("2llama", "llama"),
        ("my--llama", "my-llama"),
        ("llama-", "llama"),
        ("ll/ama", "ll-ama"),
        ("../llama", "llama"),
        ("", "my-model"),
        ("é", "my-model"),
        ("x" * 41, "x" * 40),
    ],
)
def test_another_form_is_refused_with_one_that_is_allowed(name, suggested):
    with pytest.raises(ConfigError, match=f"use '{suggested}'$"):
        check_name(name, "model")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("class", "'class' is a keyword of Python"),
        ("random", "'random' is a module of Python's standard library"),
        ("json", "standard library"),
        ("torch", "is installed here as a package"),
        ("archon-core", "is installed here as a package"),
        ("archon_scaffold", "'archon-scaffold' is one of Archon's own packages"),
        ("archon", "'archon' is the name of the command"),
        ("tests", "'tests' is the name of a folder in every package"),
        ("src", "'src' is the name of a folder in every package"),
        ("archon-ray", "is one of Archon's own packages"),
    ],
)
def test_a_name_that_hides_something_is_refused(name, reason):
    with pytest.raises(ConfigError, match=f"{reason}.*choose another name, such as 'my-"):
        check_name(name, "model")


def test_a_name_that_hides_a_module_is_refused_and_a_mere_folder_is_no_module(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").touch()
    (tmp_path / "some_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="the package would hide the installed module 'some_module'"):
        check_name("some-module", "model")
    assert check_name("some-folder", "model").module == "some_folder"


def test_a_name_that_a_spec_of_the_kind_has_is_refused_and_that_of_another_kind_is_not():
    registry().add(RewardSpec(name="taken-name", aliases=("taken-alias",), target="os:path"))
    try:
        for name in ("taken-name", "taken-alias"):
            with pytest.raises(ConfigError, match="a reward of that name is installed"):
                check_name(name, "reward")
        assert check_name("taken-name", "model").module == "taken_name"
    finally:
        registry().remove(RewardSpec, "taken-name")
