"""What the pages and READMEs show is true: examples run, commands and options exist."""

from __future__ import annotations

import doctest
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from archon_core.cli.commands import build_command, known_commands
from archon_core.cli.main import main
from archon_core.config.raw import RawMapping
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import knows
from archon_core.layout.axes import AXIS_NAMES
from archon_core.plugins import TrainEngineSpec, registry
from archon_train.experiment import ROOT as ROOT_SCHEMA
from archon_train.experiment import load_config
from docsite.repository import Repository
from generated.plans import SHOWN
from generated.torchtitan import LAYOUT, ROWS

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in Repository(ROOT).all_markdown()}


def blocks(language: str) -> list[tuple[str, str]]:
    """File and content of every fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(name, match[1]) for name, text in TEXTS.items() for match in fence.finditer(text)]


def configurations() -> list[tuple[str, str]]:
    """The blocks of YAML that are configurations of ours; a workflow of continuous integration has jobs."""
    return [(name, block) for name, block in blocks("yaml") if "jobs" not in yaml.safe_load(block)]


def commands() -> list[str]:
    """Every ``archon ...`` that a page shows to be typed, in blocks and in code spans, each once."""
    found = []
    for _, block in blocks("bash"):
        joined = re.sub(r" \\\n +", " ", block)
        found += re.findall(r"^(?:hatch run |\$ )?(archon .+)$", joined, re.MULTILINE)
    for text in TEXTS.values():
        found += re.findall(r"`(archon [a-z]+ [^`<>\n]*?)`", text)
    return sorted(dict.fromkeys(found))


@pytest.mark.parametrize("name", sorted({name for name, _ in blocks("pycon")}))
def test_the_examples_of_a_page_print_what_it_shows(name: str) -> None:
    examples = doctest.DocTestParser().get_doctest(TEXTS[name], {}, name, name, 0)
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.DocTestRunner(optionflags=flags).run(examples, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_can_be_given(line: str) -> None:
    _, name, *arguments = shlex.split(line.replace("...", "x"), comments=True)
    spec = known_commands().get(name)
    assert spec is not None, f"there is no command {name}"
    command = build_command(spec)
    inner = getattr(command, "commands", {})
    if inner and arguments and not arguments[0].startswith("-"):
        names = arguments.pop(0).split("|")
        assert set(names) <= set(inner), f"archon {name} has {', '.join(inner)}"
        command = inner[names[0]]
    shown = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert shown <= {*options, "--help"}


def shown_in(page: str) -> str:
    """All shell commands of a page."""
    return "\n".join(block for name, block in blocks("bash") if name == page)


def test_the_tour_shows_every_command() -> None:
    assert set(re.findall(r"^archon ([a-z]+)", shown_in("docs/commands.md"), re.MULTILINE)) == set(known_commands())


def test_the_readme_has_a_recipe_for_every_way_to_train_and_names_every_page() -> None:
    text, recipes = TEXTS["README.md"], shown_in("README.md")
    for recipe in ("grpo_", "distill_", "dpo_", "rw_", "rollout.backend=served", "archon serve"):
        assert recipe in recipes, recipe
    pages = {name for name in TEXTS if re.fullmatch(r"docs/[a-z-]+\.md", name)} - {"docs/index.md"}
    assert {page for page in pages if f"({page})" not in text} == set()


def quick_commands() -> list[str]:
    """Those that need no more than what is installed, and a second."""
    quick = re.compile(
        r"archon (plugins|models|schedules|algorithms|pipeline show (?!LIFO|--run).*|simulate (?!--from).*"
        r"|plan (--model|examples/).*?"
        r"|train examples/.*--dry-run.*?)( +#.*)?"
    )
    on_their_page = {command for command, _ in SHOWN.values()}  # the check of the generated pages runs these
    return [match[0] for line in commands() if (match := quick.fullmatch(line)) and match[0] not in on_their_page]


@pytest.mark.parametrize("line", quick_commands())
def test_a_quick_command_that_is_shown_succeeds(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line, comments=True)[1:])
    assert not ended.value.code, capsys.readouterr().err
    assert capsys.readouterr().out


def test_scripts_that_are_shown_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    programs = {"archon", "python", "pytest", "ruff", "lint-imports"}
    scripts = {*programs, *project["tool"]["hatch"]["envs"]["default"]["scripts"]}
    shown = {script for text in TEXTS.values() for script in re.findall(r"hatch run ([\w-]+)", text)}
    assert shown <= scripts


@pytest.mark.parametrize(("name", "block"), [pytest.param(*found, id=found[0]) for found in configurations()])
def test_a_configuration_that_is_shown_can_be_read(name: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block)
    load_config(file)


@pytest.mark.parametrize("shown", ROWS, ids=lambda shown: f"{shown.section}.{shown.option}")
def test_options_beside_those_of_torchtitan_exist(shown) -> None:
    root = ROOT_SCHEMA.with_engines(registry().all(TrainEngineSpec))
    schema = build_schema(root.schema, choose_sections(registry(), RawMapping({}), root).used)
    assert shown.ours or shown.note, "an option without ours says what happens instead"
    for option in shown.ours:
        name, _, letter = option.partition(":")
        assert knows(schema, name)
        assert not letter or (name == LAYOUT and letter in AXIS_NAMES)


def test_the_table_of_simulated_runs_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = next(line for line in commands() if line.startswith("archon simulate") and "--spread" in line)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command)[1:])
    assert not ended.value.code
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    [shown] = [block for name, block in blocks("text") if name == "docs/simulate.md"]
    assert printed == shown.rstrip().splitlines()
