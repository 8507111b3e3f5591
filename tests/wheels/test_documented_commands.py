"""What pages tell users to install can be installed, and what they say is printed is printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_environment import FreshEnvironment, missing_here

from workspace import ROOT, find_packages

INSTALLING = ROOT / "docs" / "installing.md"

PAGES = [INSTALLING, *(package.folder / "README.md" for package in find_packages().values())]

OURS = r"(?:archon-[a-z-]+|\"archon-[a-z-]+\[[a-z,]+\]\")"


def commands(page: Path) -> list[str]:
    """The ``pip install`` commands of a page that name packages of ours alone."""
    return re.findall(rf"pip install ({OURS}(?: {OURS})*)", page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def everything(make_fresh: Callable[..., FreshEnvironment]) -> FreshEnvironment:
    packages = find_packages().values()
    extras = {
        package.name: [extra for extra, needed in package.optional_requirements.items() if not missing_here(needed)]
        for package in packages
    }
    with_extras = [f"{name}[{','.join(found)}]" for name, found in extras.items()]
    return make_fresh(*(name.removesuffix("[]") for name in with_extras))


def test_every_documented_pip_command_resolves(everything: FreshEnvironment) -> None:
    asked = sorted({command for page in PAGES for command in commands(page)})
    assert len(asked) >= len(find_packages())
    names = {re.sub(r"\[.*", "", word) for command in asked for word in shlex.split(command)}
    assert names <= set(find_packages()), "a page tells users to install what is not there"
    words = sorted({word for command in asked for word in shlex.split(command)})
    done = everything.pip_install("--dry-run", "--ignore-installed", "--no-deps", *words)
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stderr


def test_the_messages_that_the_page_shows_are_those_that_users_get(
    make_fresh: Callable[..., FreshEnvironment],
) -> None:
    bare = make_fresh("archon-train")
    shown = re.findall(r"```\n\$ archon (.*)\n((?:.|\n)*?)```", INSTALLING.read_text(encoding="utf-8"))
    assert len(shown) == 2
    for command, output in shown:
        arguments = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(command)]
        done = bare.archon(*arguments)
        assert done.returncode == 2
        for line in output.splitlines():
            assert line == "..." or f"{line}\n" in done.stderr
