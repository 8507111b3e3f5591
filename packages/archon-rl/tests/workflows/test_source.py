"""``workflow: module:function``: a factory in a user's own module, under the rules of ``reward: module:function``."""

from __future__ import annotations

import sys

import pytest

from archon_core.errors import ConfigError, UnknownNameError
from archon_core.plugins import registry
from archon_rl.workflows.rlvr import RLVR
from archon_rl.workflows.source import WorkflowSource, workflow_source

OWN = """
from dataclasses import dataclass


@dataclass
class Mine:
    config: object
    parts: object

    async def run(self, client, record, seeds):
        return None


def build(config, parts):
    return Mine(config, parts)


def nothing(config, parts):
    return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_workflows.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("my_workflows", None)


def test_a_name_is_a_plugins_workflow():
    source = workflow_source("rlvr", registry())
    assert source.origin == "archon-rl"
    assert source.build(None, "parts") == RLVR("parts")


@pytest.mark.parametrize("name", ["my_workflows:build", "my_workflows.build"])
def test_a_factory_of_the_users_own_module_is_imported_from_its_folder(here, name):
    source = workflow_source(name, registry())
    assert source == WorkflowSource(name, "my_workflows:build", folder=str(here))
    built = source.build("config", "parts")
    assert (type(built).__name__, built.config, built.parts) == ("Mine", "config", "parts")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent:build", "workflow: found no absent.py in .*; start archon in the folder that holds the module"),
        ("my_workflows:built", "workflow: found no 'built' in .*; did you mean 'build'?"),
        ("my_workflows:Mine", r"workflow: found the class 'Mine' in .*; allowed is a function of \(config, parts\)"),
    ],
)
def test_a_missing_module_or_factory_is_found_without_importing_it(here, name, message):
    (here / "my_workflows.py").write_text("raise SystemExit\n" + OWN)
    with pytest.raises(ConfigError, match=message):
        workflow_source(name, registry())


def test_an_unknown_name_lists_the_installed_workflows():
    with pytest.raises(UnknownNameError, match="rlvr"):
        workflow_source("rlvrr", registry())


def test_a_factory_that_returns_no_workflow_is_refused(here):
    with pytest.raises(ConfigError, match=r"workflow 'my_workflows:nothing': found a value of type int.*def run\(self"):
        workflow_source("my_workflows:nothing", registry()).build(None, None)


def test_a_module_that_cannot_be_imported_is_named(here):
    (here / "my_workflows.py").write_text("import absent_package\n" + OWN)
    with pytest.raises(ConfigError, match=r"'my_workflows:build': importing 'my_workflows' from .* raised Mod"):
        workflow_source("my_workflows:build", registry()).build(None, None)


def test_what_another_module_defines_is_out_of_reach(here):
    (here / "my_workflows.py").write_text("from shutil import copytree as build\n")
    with pytest.raises(ConfigError, match="workflow 'my_workflows:build': found a function of the module 'shutil'"):
        workflow_source("my_workflows:build", registry()).build(None, None)
