"""What a release is made of: tags, change logs, bounds, contents and imports, each held against what it must refuse."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from datetime import date
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from archon_core.plugins.loader import PLUGIN_API, PLUGIN_API_SINCE
from release_bounds import bound_problems, read_constraints, shown, third_party_problems, unreleased_needs
from release_changelog import notes_of, read_changelog, released_versions, with_release
from release_contents import entry_point_problems, metadata_problems, readme_problems
from release_git import GitState, git_problems
from release_imports import import_problems, imported_names
from release_plan import next_commands, plan_release, with_version
from release_problem import ReleaseError
from release_tag import parse_tag
from workspace import ROOT, Package, WorkspaceError, find_packages, read_package

PACKAGES = find_packages()
DAY = date(2027, 1, 31)

LOG = """# Changelog of archon-moe

## Unreleased

- A new thing.

## 0.1.0 - 2026-12-01

- The first thing.
"""


def refused(*parts: str):
    """Expects a ``ReleaseError`` that says all of these."""
    return pytest.raises(ReleaseError, match=".*".join(map(re.escape, parts)))


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_every_package_could_be_released_as_it_stands(package: Package) -> None:
    plan = plan_release(ROOT, f"{package.name}-v{package.version}", DAY, PLUGIN_API_SINCE)
    assert plan.notes.startswith("- ")
    assert plan.package.version == package.version
    assert set(plan.edits) <= {package.changelog}
    assert package.name == "archon-core" or package.plugin_apis


LAYERS = "core says, engine builds, plugins bring the rest; archon-rl and archon-plan may import archon-train"


def test_the_workspace_names_every_package_where_tools_need_a_list() -> None:
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    import_names = {package.import_name for package in PACKAGES.values()}
    contracts = {contract["name"]: contract for contract in root["importlinter"]["contracts"]}
    light = set(contracts["entry points and options of plugins import no torch"]["source_modules"])
    layers = contracts[LAYERS]["layers"]
    own = set(contracts["archon-rl and archon-plan import no other plugin"]["forbidden_modules"])
    assert import_names == set(root["importlinter"]["root_packages"])
    assert import_names == set(root["ruff"]["lint"]["isort"]["known-first-party"])
    assert import_names == {name for layer in layers for name in layer.split(" | ")}
    assert import_names - own == {"archon_core", "archon_engine", "archon_plan", "archon_rl", "archon_train"}
    assert {module for package in PACKAGES.values() for module in package.plugin_apis} <= light
    readme, changelogs = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md"))
    for name in PACKAGES:
        assert f"(packages/{name})" in readme
        assert f"(packages/{name}/CHANGELOG.md)" in changelogs


def test_a_tag_names_a_package_and_a_version() -> None:
    assert parse_tag("archon-models-qwen-v0.2.0", PACKAGES) == ("archon-models-qwen", Version("0.2.0"))
    assert parse_tag("archon-core-v1.0.0rc1", PACKAGES) == ("archon-core", Version("1.0.0rc1"))


@pytest.mark.parametrize(
    ("tag", "parts"),
    [
        ("archon-core", ("found no <distribution>-v<version>",)),
        ("v0.2.0", ("found no <distribution>-v<version>",)),
        ("archon-cor-v0.2.0", ("no package 'archon-cor'", "did you mean 'archon-core'?")),
        ("archon-core-v0.2", ("found version '0.2'", "archon-core-v0.2.0")),
        ("archon-core-v0.2.0+local", ("found version '0.2.0+local'", "archon-core-v0.2.0")),
        ("archon-core-v00.2.0", ("archon-core-v0.2.0",)),
        ("archon-core-v0.x", ("'0.x' is no version",)),
    ],
)
def test_other_tags_are_refused_with_one_that_would_do(tag: str, parts: tuple[str, ...]) -> None:
    with refused(*parts):
        parse_tag(tag, PACKAGES)


def test_a_release_takes_what_is_unreleased_and_leaves_room_above_it() -> None:
    after = with_release(LOG, Version("0.2.0"), DAY, name="CHANGELOG.md")
    assert "## Unreleased\n\n## 0.2.0 - 2027-01-31\n\n- A new thing.\n\n## 0.1.0 - 2026-12-01" in after
    assert notes_of(after, Version("0.2.0"), name="") == "- A new thing."
    assert notes_of(after, None, name="") == ""
    assert released_versions(after, name="") == [Version("0.2.0"), Version("0.1.0")]
    again = after.replace("## Unreleased\n", "## Unreleased\n\n- Another.\n")
    assert released_versions(with_release(again, Version("0.3.0"), DAY, name=""), name="")[0] == Version("0.3.0")


@pytest.mark.parametrize(
    ("log", "version", "parts"),
    [
        (LOG.replace("- A new thing.\n", ""), "0.2.0", ("CHANGELOG.md", "nothing under '## Unreleased'")),
        (LOG.replace("## Unreleased\n\n- A new thing.\n", ""), "0.2.0", ("nothing under '## Unreleased'",)),
        (LOG, "0.1.0", ("found 0.1.0, released before",)),
        (LOG, "0.0.9", ("found 0.1.0, released before", "not 0.0.9")),
        (LOG.replace("2026-12-01", "yesterday"), "0.2.0", ("'## 0.1.0 - yesterday'", "'## X.Y.Z - YYYY-MM-DD'")),
        (LOG.replace("2026-12-01", "2026-13-01"), "0.2.0", ("'## 0.1.0 - 2026-13-01'",)),
        (LOG.replace("## Unreleased", "## 0.2.0 (unreleased)"), "0.2.0", ("'## 0.2.0 (unreleased)'",)),
        (f"{LOG}\n## Unreleased\n\n- Late.\n", "0.2.0", ("below a release",)),
        (f"{LOG}\n## 0.3.0 - 2026-01-01\n\n- Out of order.\n", "0.4.0", ("0.1.0, 0.3.0", "the newest first")),
        (f"{LOG}\n## 0.1.0 - 2026-01-01\n\n- Twice.\n", "0.4.0", ("0.1.0, 0.1.0", "once")),
    ],
)
def test_change_logs_that_say_nothing_or_something_else_are_refused(log: str, version: str, parts: tuple) -> None:
    with refused(*parts):
        with_release(log, Version(version), DAY, name="CHANGELOG.md")


def test_the_change_logs_of_the_repository_have_the_form() -> None:
    for package in PACKAGES.values():
        text = package.changelog.read_text(encoding="utf-8")
        assert text.startswith(f"# Changelog of {package.name}\n")
        assert read_changelog(text, name=package.name)


def plugin(*dependencies: str, declared: str | None = "1.0", **extras: list[str]) -> Package:
    """A package named archon-demo with these dependencies."""
    core = PACKAGES["archon-core"]
    project = {"name": "archon-demo", "dependencies": dependencies, "optional-dependencies": extras}
    return replace(core, project=project, plugin_apis={"archon_demo.plugin": declared})


@pytest.mark.parametrize(
    "package",
    [
        plugin("archon-core>=0.1,<1"),
        plugin("archon-core[tensorboard] >=0.1.0, <1", "torch>=2.11"),
        plugin("archon-core>=0.1,<1", test=["archon-testing>=0.1,<1", "archon-demo[extra]"]),
    ],
)
def test_bounds_of_the_usual_form_pass(package: Package) -> None:
    assert bound_problems(package, {**PACKAGES, "archon-demo": package}, PLUGIN_API_SINCE) == []


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (plugin("archon-core"), "found archon-core; first-party bounds are archon-core>=X.Y,<1"),
        (plugin("archon-core>=0.1"), "found archon-core>=0.1; first-party"),
        (plugin("archon-core~=0.1"), "found archon-core~=0.1; first-party"),
        (plugin("archon-core>=0.1,<2"), "found archon-core>=0.1,<2; first-party"),
        (plugin("archon-core>=0.1,<1", test=["archon-testing==0.1.0"]), "found archon-testing==0.1.0; first-party"),
        (plugin("archon-core>=0.99,<1"), "found archon-core>=0.99,<1, but archon-core here is"),
        (plugin("archon-core>=0.1,<1", declared="1.7"), "ARCHON_PLUGIN_API = '1.7' in archon_demo.plugin; archon-core"),
        (plugin("archon-core>=0.1,<1", declared=None), "found no ARCHON_PLUGIN_API in archon_demo.plugin"),
    ],
)
def test_other_bounds_are_named_with_what_to_write(package: Package, expected: str) -> None:
    [problem] = bound_problems(package, PACKAGES, PLUGIN_API_SINCE)
    assert problem.startswith("archon-demo: ")
    assert expected in problem


def test_a_bound_below_the_first_core_with_the_declared_plugin_api_is_named() -> None:
    since = {(1, 0): "0.1", (1, 1): "0.3"}
    core = replace(PACKAGES["archon-core"], version=Version("0.4.0"))
    [problem] = bound_problems(plugin("archon-core>=0.2,<1", declared="1.1"), {"archon-core": core}, since)
    assert "declares plugin API 1.1, which archon-core has since 0.3" in problem
    assert problem.endswith("write archon-core>=0.3,<1")
    assert bound_problems(plugin("archon-core>=0.3,<1", declared="1.1"), {"archon-core": core}, since) == []


def test_the_plugin_api_of_core_is_the_newest_of_those_whose_first_release_is_known() -> None:
    assert max(PLUGIN_API_SINCE) == PLUGIN_API
    versions = [Version(since) for _, since in sorted(PLUGIN_API_SINCE.items())]
    assert versions == sorted(versions)
    assert versions[-1] <= PACKAGES["archon-core"].version


def test_what_is_to_be_released_first_is_what_no_release_fits() -> None:
    package = plugin("archon-core>=0.2,<1", "torch>=2.11")
    for released, first in (((), True), (("0.1.0",), True), (("0.2.0rc1",), True), (("0.2.0",), False)):
        needs = unreleased_needs(package, {"archon-core": [Version(text) for text in released]})
        assert bool(needs) is first, released


def test_third_party_bounds_are_one_text_with_a_lowest_version_that_fits_what_is_tested() -> None:
    tested = read_constraints("# a comment\ntorch==2.13.0\nrich==15.0.0\n")
    assert tested == {"torch": Version("2.13.0"), "rich": Version("15.0.0")}
    assert third_party_problems({"a": plugin("torch>=2.11")}, tested) == []
    different = {"a": plugin("torch>=2.11"), "b": plugin("torch>=2.12")}
    [problem] = third_party_problems(different, tested)
    assert problem.startswith("torch: found different bounds (torch>=2.11 in archon-demo; torch>=2.12 in archon-demo)")
    assert "name the lowest version that works: rich>=X.Y" in third_party_problems({"a": plugin("rich")}, tested)[0]
    assert "but CI tests 2.13.0" in third_party_problems({"a": plugin("torch>=2.14")}, tested)[0]


def test_a_requirement_is_shown_as_people_write_it() -> None:
    assert shown(Requirement("archon-core[tensorboard]<1,>=0.1")) == "archon-core[tensorboard]>=0.1,<1"


def metadata(**fields: str | list[str]) -> Message:
    """The metadata of archon-moe with other fields."""
    given = {
        "Name": "archon-moe",
        "Version": str(PACKAGES["archon-moe"].version),
        "Summary": "experts",
        "Author": "The Archon authors",
        "Keywords": "experts",
        "License-Expression": "Apache-2.0",
        "License-File": "LICENSE",
        "Requires-Python": ">=3.11",
        "Description-Content-Type": "text/markdown",
        "Classifier": [
            "Development Status :: 3 - Alpha",
            "Intended Audience :: Science/Research",
            "Programming Language :: Python :: 3.11",
            "Topic :: Scientific/Engineering",
            "Typing :: Typed",
        ],
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    lists = {name: [values] if isinstance(values, str) else values for name, values in given.items()}
    lines = [f"{name}: {value}" for name, values in lists.items() for value in values]
    return Parser().parsestr("\n".join(lines) + "\n\n# archon-moe\n\n```bash\npip install archon-moe\n```\n")


def test_complete_metadata_passes() -> None:
    assert metadata_problems(metadata(), PACKAGES["archon-moe"]) == []
    urls = metadata(Project_URL="Source, https://archon.dev/source", Requires_Dist="torch>=2.11; extra == 'a'")
    assert metadata_problems(urls, PACKAGES["archon-moe"]) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT"}, "License-Expression: found 'MIT', should be 'Apache-2.0'"),
        ({"Description_Content_Type": "text/plain"}, "Description-Content-Type: found 'text/plain'"),
        ({"Requires_Python": ">=3.9"}, "Requires-Python: found '>=3.9'"),
        ({"Version": "9.9.9"}, "Version: found '9.9.9'"),
        ({"Summary": ""}, "Summary: is empty"),
        ({"Summary": "x" * 121}, "Summary: longer than 120"),
        ({"Classifier": ["Typing :: Typed"]}, "Classifier: none begins with 'Development Status ::'"),
        ({"Project_URL": "Home, https://github.com/your-org/archon"}, "name a host that exists"),
        ({"Project_URL": "Home, https://example.com"}, "name a host that exists"),
        ({"Project_URL": "Home, http://archon.dev"}, "name a host that exists"),
        ({"Requires_Dist": "archon-core @ file:///tmp/core"}, "a place instead of a version"),
    ],
)
def test_metadata_that_an_index_would_refuse_or_show_wrongly_is_named(fields: dict, expected: str) -> None:
    problems = metadata_problems(metadata(**fields), PACKAGES["archon-moe"])
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("# archon-moe\n\nInstall it.\n", "no line of a code block says how to install it"),
        ("# other\n\n```\npip install archon-moe\n```\n", "does not begin with '# archon-moe'"),
        ("# archon-moe\n\n```\npip install archon-moe\n```\n[docs](../../docs/moe.md)\n", "'../../docs/moe.md'"),
        ("# archon-moe\n\n```\npip install archon-moe\n```\n![x](images/x.svg)\n", "'images/x.svg'"),
        ("# archon-moe\n\n```\npip install archon-moe\n```\n[x](https://example.com/x)\n", "https://example.com/x"),
    ],
)
def test_readmes_that_lead_nowhere_are_named(readme: str, expected: str) -> None:
    [problem] = readme_problems(readme, "archon-moe")
    assert expected in problem


def test_entry_points_name_modules_that_the_wheel_holds() -> None:
    package, core = PACKAGES["archon-moe"], PACKAGES["archon-core"]
    names = {"archon_moe/plugin.py", "archon_core/cli/main.py"}
    assert list(entry_point_problems("[archon]\nmoe = archon_moe.plugin\n", names, package)) == []
    script = "[console_scripts]\narchon = archon_core.cli.main:main\n"
    assert list(entry_point_problems(script, names, core)) == []
    [problem] = entry_point_problems("[archon]\nmoe = archon_moe.plug\n", names, package)
    assert "holds no module archon_moe.plug" in problem
    assert list(entry_point_problems("", names, package)) == ["no entry point of the group 'archon'"]


SOURCE = """
from __future__ import annotations
import os, torch.nn
from typing import TYPE_CHECKING
from . import sibling
if TYPE_CHECKING:
    import pandas
else:
    import hidden
def late():
    from rich.table import Table
try:
    import yaml
except ImportError:
    yaml = None
"""


def test_imports_are_found_wherever_they_stand_except_those_for_type_checkers() -> None:
    assert set(imported_names([("a.py", SOURCE)])) == {"torch", "rich", "yaml", "hidden"}


def test_imports_and_declarations_have_to_agree() -> None:
    provided = {"torch": ["torch"], "yaml": ["PyYAML"], "archon_moe": ["archon-moe"], "rich": ["rich"]}
    own = {"archon_moe": "a.py", "torch": "a.py"}
    declared = metadata(Requires_Dist=["torch>=2.11"])
    assert import_problems(own, declared, provided) == []
    [missing] = import_problems({**own, "yaml": "b.py"}, declared, provided)
    assert missing == "b.py imports yaml, but archon-moe does not declare pyyaml; add it to its dependencies"
    [unknown] = import_problems({**own, "apex": "b.py"}, declared, provided)
    assert unknown == "b.py imports apex, which nothing that is installed provides"
    optional = metadata(Requires_Dist=["torch>=2.11", "rich>=13; extra == 'pretty'"])
    assert import_problems({**own, "rich": "b.py"}, optional, provided) == []
    [vain] = import_problems(own, optional, provided)
    assert vain.startswith("archon-moe declares rich, which it never imports")


def test_git_keeps_a_release_to_what_its_tag_names() -> None:
    clean = GitState(tagged=None, head="a", changed=())
    assert git_problems(clean, "archon-moe-v0.2.0", edits=True) == []
    assert git_problems(replace(clean, tagged="a"), "archon-moe-v0.2.0", edits=False) == []
    [problem] = git_problems(replace(clean, changed=("README.md",)), "archon-moe-v0.2.0", edits=True)
    assert "not committed: README.md" in problem
    [problem] = git_problems(replace(clean, tagged="b"), "archon-moe-v0.2.0", edits=True)
    assert "choose the next version" in problem
    [problem] = git_problems(replace(clean, tagged="b"), "archon-moe-v0.2.0", edits=False)
    assert problem.endswith("git checkout archon-moe-v0.2.0")


def test_a_release_sets_the_version_and_no_lower_one() -> None:
    plan = plan_release(ROOT, "archon-core-v0.98.0", DAY, PLUGIN_API_SINCE)
    core = PACKAGES["archon-core"]
    assert set(plan.edits) == {core.version_file, core.changelog}
    assert '__version__ = "0.98.0"\n' in plan.edits[core.version_file]
    assert "## 0.98.0 - 2027-01-31" in plan.edits[core.changelog]
    commands = next_commands(plan, ("dist/a.whl", "dist/a.tar.gz"))
    assert 'git tag -a archon-core-v0.98.0 -m "archon-core 0.98.0"' in commands
    assert commands.endswith("hatch run python -m twine upload dist/a.whl dist/a.tar.gz")
    with refused("archon-core is", "already"):
        plan_release(ROOT, "archon-core-v0.0.1", DAY, PLUGIN_API_SINCE)
    with pytest.raises(AssertionError):
        with_version("nothing here", Version("1.0.0"))


def test_a_folder_without_a_version_says_how_to_give_it_one(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "archon-x"\n', encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"has no version file; .*\[tool.hatch.version\] path"):
        read_package(tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "archon-x"\n[tool.hatch.version]\npath = "x.py"\n', encoding="utf-8"
    )
    (tmp_path / "x.py").write_text("version = 1\n", encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r'write __version__ = "X.Y.Z"'):
        read_package(tmp_path)
