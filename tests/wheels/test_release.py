"""``hatch run release``: one package by its tag, from the check to the commands that upload it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import release
from workspace import ROOT, find_packages

DAY = "2027-01-31"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the repository with a plugin and what it needs, committed."""
    root = tmp_path / "repository"
    for name in ("archon-core", "archon-engine", "archon-moe"):
        shutil.copytree(
            ROOT / "packages" / name, root / "packages" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("LICENSE", ".gitignore", "constraints/tested.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    git(root, "init", "--quiet")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Someone", "-c", "user.email=someone@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "state")


def test_packages_are_released_one_by_one_from_core_up(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = str(find_packages()["archon-moe"].version)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = release.main([*arguments, "--date", DAY], root=repository)
        return code, *capsys.readouterr()

    code, out, err = run("archon-moe-v0.7.0", "--check")
    assert code == 0, err
    for needed in ("archon-core", "archon-engine"):
        assert f"note: {needed}>=0.1,<1: no release of {needed} fits; release that first" in out
    assert "checked only; a release writes" in out
    assert git(repository, "status", "--porcelain") == ""
    assert not (repository / "dist").exists()

    code, _, err = run("archon-moe-v0.7.0")
    assert code == 1
    assert "no release of archon-core fits" in err
    assert git(repository, "status", "--porcelain") == ""

    for needed in ("archon-core", "archon-engine"):
        own = str(find_packages()[needed].version)
        code, out, err = run(f"{needed}-v{own}")
        assert code == 0, err
        assert f'git tag -a {needed}-v{own} -m "{needed} {own}"' in out
        commit(repository)

    readme = repository / "packages/archon-moe/README.md"
    readme.write_text(readme.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    code, _, err = run("archon-moe-v0.7.0")
    assert code == 1
    assert "not committed: packages/archon-moe/README.md" in err
    git(repository, "checkout", "--", ".")

    code, out, err = run("archon-moe-v0.7.0")
    assert code == 0, err
    assert f"## 0.7.0 - {DAY}" in (repository / "packages/archon-moe/CHANGELOG.md").read_text(encoding="utf-8")
    module = repository / "packages/archon-moe/src/archon_moe/__init__.py"
    assert '__version__ = "0.7.0"' in module.read_text(encoding="utf-8")
    files = ["dist/archon_moe-0.7.0-py3-none-any.whl", "dist/archon_moe-0.7.0.tar.gz"]
    assert f"hatch run python -m twine upload {' '.join(files)}" in out
    first = [(repository / file).read_bytes() for file in files]
    commit(repository)
    git(repository, "tag", "archon-moe-v0.7.0")

    code, out, err = run("archon-moe-v0.7.0")
    assert code == 0, err
    assert "git tag" not in out, "there is nothing left to do but to upload"
    assert [(repository / file).read_bytes() for file in files] == first, "the same commit builds the same files"
    code, _, err = run(f"archon-moe-v{version}")
    assert code == 1
    assert "archon-moe is 0.7.0 already" in err


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda package: (package / "src/archon_moe/py.typed").unlink(), "has no py.typed"),
        (lambda package: (package / "LICENSE").write_text("All yours.\n"), "its LICENSE is not the repository's"),
        (lambda package: append(package / "src/archon_moe/load.py", "import datasets\n"), "does not declare datasets"),
        (lambda package: append(package / "README.md", "[more](../../docs/moe.md)\n"), "leads nowhere"),
        (lambda package: make_tests(package / "src/archon_moe/tests"), "tests and caches stay out"),
        (lambda package: append(package / "pyproject.toml", 'exclude = ["load.py"]\n'), "load.py"),
        (lambda package: append(package / "src/archon_moe/plugin.py", 'ARCHON_PLUGIN_API = "9.0"\n'), "'9.0'"),
    ],
    ids=("untyped", "licence", "undeclared", "link", "tests", "incomplete", "api"),
)
def test_a_package_with_a_fault_is_not_released(
    repository: Path, capsys: pytest.CaptureFixture[str], spoil, expected: str
) -> None:
    spoil(repository / "packages" / "archon-moe")
    code = release.main(["archon-moe-v0.7.0", "--check"], root=repository)
    err = capsys.readouterr().err
    assert code == 1
    assert "error: the release cannot be made" in err
    assert expected in err


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def make_tests(folder: Path) -> None:
    folder.mkdir()
    (folder / "test_load.py").write_text("def test_nothing(): ...\n", encoding="utf-8")
