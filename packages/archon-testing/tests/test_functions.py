"""Functions are found by name, in modules that an import finds and in files that only this process has loaded."""

import importlib.util
import os
import pickle
import sys
from pathlib import Path

import pytest

from archon_core.errors import ConfigError
from archon_testing.functions import FunctionReference


def of_this_file():
    return "found"


class Holder:
    @staticmethod
    def inside():
        return "inside"


@pytest.fixture
def module_of(tmp_path, monkeypatch):
    """``module_of(name, source)``: a module that was loaded from a file, as pytest loads test files."""

    def load(name, source):
        file = tmp_path / f"{name.rpartition('.')[2]}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_function_of_a_loaded_file_is_found_again():
    reference = FunctionReference.of(of_this_file)
    assert reference.load()() == "found"
    assert str(reference) == f"{__name__}.of_this_file"


def test_an_attribute_of_a_class_is_found():
    assert FunctionReference.of(Holder.inside).load()() == "inside"


def test_a_function_without_a_python_file_is_imported():
    assert FunctionReference.of(os.getpid).load() is os.getpid


def test_a_file_that_no_import_finds_is_run_under_its_name(module_of, monkeypatch):
    module = module_of("no_such_package.checks", "class C:\n    pass\n\ndef f():\n    return C()\n")
    reference = FunctionReference.of(module.f)
    monkeypatch.delitem(sys.modules, "no_such_package.checks")
    value = reference.load()()
    assert type(value) is sys.modules["no_such_package.checks"].C is not module.C
    # Pickle looks a class up by the dotted name, the package's included.
    assert isinstance(pickle.loads(pickle.dumps(value)), type(value))
    monkeypatch.delitem(sys.modules, "no_such_package")


def test_another_module_of_the_same_name_is_not_taken_for_it(module_of, monkeypatch):
    # A test file called like a module of the standard library.
    reference = FunctionReference.of(module_of("colorsys", "def f():\n    return 'ours'\n").f)
    monkeypatch.delitem(sys.modules, "colorsys")
    assert reference.load()() == "ours"


def test_what_the_file_itself_lacks_is_not_hidden(module_of, monkeypatch):
    module = module_of("archon_testing_missing", "def f():\n    pass\n")
    reference = FunctionReference.of(module.f)
    monkeypatch.delitem(sys.modules, "archon_testing_missing")
    Path(module.__file__).write_text("import not_installed_anywhere\n", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        reference.load()


def test_a_missing_name_is_an_error():
    with pytest.raises(ConfigError, match="has no 'missing'"):
        FunctionReference("os", "missing").load()
