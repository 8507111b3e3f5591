"""Global options, dispatch to the commands of plugins, and how errors reach the user."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from archon_core import __version__
from archon_core.plugins import registry
from archon_core.plugins.discovery import Discovery

GREETER = """
@hookimpl
def archon_commands():
    return [CommandSpec(name="greet", target="greeter:greet", summary="Say [hello] to somebody.")]
"""

GREETER_MODULE = """
import typer

def greet(name: str, loud: bool = False) -> None:
    '''Say hello.'''
    print(("HELLO " if loud else "hello ") + name)

app = typer.Typer()

@app.command()
def hello() -> None:
    print("hello")

@app.command()
def bye() -> None:
    print("bye")

number = 42
"""


@pytest.fixture
def greeter(site):
    (site.path / "greeter.py").write_text(GREETER_MODULE)
    return site


def test_the_version_is_cores(archon):
    assert archon("--version").out == f"archon-core {__version__}\n"


def test_help_lists_the_commands_of_core_and_of_plugins_without_importing_them(archon, greeter):
    greeter.install("archon-greeter", GREETER)
    outcome = archon("--help")
    assert outcome.code == 0
    for text in ("train", "plugins", "models", "schedules", "doctor", "greet", "Say [hello] to somebody."):
        assert text in outcome.out
    assert "Commands of archon-greeter" in outcome.out
    assert "greeter" not in sys.modules


def test_a_command_of_a_plugin_takes_arguments_and_has_help(archon, greeter):
    greeter.install("archon-greeter", GREETER)
    assert archon("greet", "Ada", "--loud").out == "HELLO Ada\n"
    assert "Say hello." in archon("greet", "--help").out


def test_a_command_of_a_plugin_may_be_a_group(archon, greeter):
    greeter.install("archon-greeter", GREETER.replace("greeter:greet", "greeter:app"))
    assert archon("greet", "bye").out == "bye\n"
    assert "--install-completion" not in archon("greet", "--help").out


def test_a_command_that_is_neither_a_function_nor_a_typer_names_its_package(archon, greeter):
    greeter.install("archon-greeter", GREETER.replace("greeter:greet", "greeter:number"))
    outcome = archon("greet", "Ada")
    assert outcome.code == 2
    assert "of archon-greeter: target 'greeter:number' is a int; name a function or a typer.Typer" in outcome.err


def test_a_plugin_cannot_take_over_a_command_of_core_and_archon_plugins_shows_that_it_tried(archon, greeter):
    greeter.install("archon-greeter", GREETER.replace('"greet"', '"models"'))
    assert "HELLO" not in archon("models").out
    assert "command 'models' is provided by archon-core" in archon("plugins").out
    assert archon("--help").out.count("│ models ") == 1


def test_an_unknown_command_gets_the_nearest_one(archon):
    outcome = archon("pugins")
    assert outcome.code == 2
    assert "did you mean 'plugins'?" in outcome.err
    assert outcome.out == ""


def test_an_unknown_command_of_a_package_that_is_not_installed_names_it(archon, monkeypatch):
    # As if nothing but core were installed.
    monkeypatch.setattr(importlib.import_module("archon_core.plugins.registry"), "discover", Discovery)
    registry.cache_clear()
    assert "pip install archon-scaffold" in archon("new", "model").err


def test_a_plugin_is_left_out_by_option_for_this_process_and_those_it_starts(archon, greeter):
    greeter.install("archon-greeter", GREETER)
    greeter.install("archon-other", "raise RuntimeError('imported')")
    outcome = archon("--no-plugin", "greeter", "--no-plugin", "Archon_Other", "greet", "Ada")
    assert outcome.code == 2
    assert "archon-greeter 1.0 may have it, but is not loaded (disabled)" in outcome.err
    assert os.environ["ARCHON_DISABLE_PLUGINS"] == "greeter,Archon_Other"


def test_a_plugin_that_is_left_out_is_not_in_the_help(archon, greeter):
    greeter.install("archon-greeter", GREETER)
    assert "greet" in archon("--help").out
    assert "greet" not in archon("--no-plugin", "greeter", "--help").out


def test_a_misspelt_name_in_the_environment_is_a_warning_with_the_installed_names(archon, greeter, monkeypatch):
    greeter.install("archon-greeter", GREETER)
    monkeypatch.setenv("ARCHON_DISABLE_PLUGINS", "greeeter")
    result = archon("greet", "you")
    assert (result.code, result.out) == (0, "hello you\n")
    assert "warning: ARCHON_DISABLE_PLUGINS: found 'greeeter', which disables nothing; allowed are all, " in result.err
    assert "did you mean 'greeter'?" in result.err


def test_leaving_out_a_plugin_that_is_not_there_is_an_error_with_the_nearest_name(archon, greeter):
    greeter.install("archon-greeter", GREETER)
    outcome = archon("--no-plugin", "greter", "models")
    assert outcome.code == 2
    assert "did you mean 'greeter'?" in outcome.err


FAILING = """
from archon_core.errors import LayoutError

def greet() -> None:
    error = LayoutError("layout 'archon:d[0]':\\n         ^ size 0")
    error.add_note("on rank 3")
    raise error
"""


def test_an_error_of_ours_is_a_message_as_it_was_written_and_exit_code_2(archon, site):
    (site.path / "greeter.py").write_text(FAILING)
    site.install("archon-greeter", GREETER)
    outcome = archon("greet")
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err == "error: layout 'archon:d[0]':\n         ^ size 0\non rank 3\n"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_traceback_of_an_error_is_shown_when_it_is_asked_for(archon, site, monkeypatch, how):
    (site.path / "greeter.py").write_text(FAILING)
    site.install("archon-greeter", GREETER)
    if how == "environment":
        monkeypatch.setenv("ARCHON_TRACEBACK", "1")
    outcome = archon(*(["--traceback"] if how == "option" else []), "greet")
    assert outcome.code == 2
    assert "greeter.py" in outcome.err
    assert outcome.err.endswith("on rank 3\n")


def test_a_broken_plugin_stops_no_command_of_core_but_all_others_in_strict_mode(archon, site, monkeypatch):
    site.install("archon-broken", "raise RuntimeError('no such accelerator')")
    assert archon("models").code == 0
    monkeypatch.setenv("ARCHON_STRICT_PLUGINS", "1")
    from archon_core.plugins import registry

    registry.cache_clear()
    outcome = archon("models")
    assert outcome.code == 2
    assert "no such accelerator" in outcome.err


LIGHT = """
import sys
from archon_core.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as exit_:
    assert not exit_.code, exit_.code
heavy = {"torch", "transformers", "tokenizers", "safetensors", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("command", ["--help", "plugins", "models", "schedules"])
def test_what_a_user_waits_for_imports_no_torch(command):
    subprocess.run([sys.executable, "-c", LIGHT, command], check=True, stdout=subprocess.DEVNULL)
