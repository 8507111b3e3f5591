"""docs/your-own-model.md, followed to the letter in a fresh virtual environment: commands, edits, what is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/your-own-model.md").read_text(encoding="utf-8")
LAYOUT_TEST = "tests/test_model.py::TestModel::test_a_layout_gives_the_numbers_of_one_process"
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)

pytestmark = pytest.mark.wide


@dataclass
class Reader:
    """Someone who types what the page says.

    Attributes:
        folder: where they are.
        environment: of their shell.
        said: what the last command printed.
    """

    folder: Path
    environment: dict[str, str]
    said: str = ""
    expects_output: bool = False
    done: list[str] = field(default_factory=list)

    def follow(self, mark: str | None, language: str, text: str) -> None:
        if language == "bash":
            self.expects_output = mark == "prints"
            self.run(text, fails=mark == "fails")
        elif language == "diff" and mark is not None:
            self.edit(self.folder / mark.removeprefix("edit: "), text)
        elif language == "text" and self.expects_output:
            for line in text.splitlines():
                assert line.strip() in self.said, f"{line}\nis not in\n{self.said}"
            self.expects_output = False
        else:
            # What to install first; the environment has it.
            assert text.startswith("python -m pip install archon-"), text
        self.done.append(language)

    def run(self, commands: str, *, fails: bool) -> None:
        script = f"set -e\n{commands}\npwd > {self.environment['PLACE']}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        self.said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{commands}\n{self.said}"
        if not fails:
            self.folder = Path(Path(self.environment["PLACE"]).read_text(encoding="utf-8").strip())

    def edit(self, file: Path, hunk: str) -> None:
        """Apply one hunk without line numbers; what it replaces must be there once."""
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{file}: found {text.count(before)} times:\n{before}"
        file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """In a virtual environment of their own, in which the packages of this one are installed."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = [path for path in sys.path if path.endswith("-packages")]
    # addsitedir, since editable installs are .pth files of their own.
    lines = [
        f"import site; site.addsitedir({path!r})" for path in dict.fromkeys([sysconfig.get_path("purelib"), *here])
    ]
    (Path(site) / "of_the_tests.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, call in (("archon", "from archon_core.cli.main import main"), ("pytest", "from pytest import main")):
        script = home / "bin" / name
        # As an installer writes them: ranks import the main module of the process that starts them.
        text = f"#!{python}\nimport sys\n{call}\nif __name__ == '__main__':\n    sys.exit(main())\n"
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTEST_"))}
    environment |= {
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(home),
        "PLACE": str(tmp_path / "place"),
        "COLUMNS": "200",
        # hatchling is in the environment, so that nothing is downloaded. (pip reads "no" here as: no isolation.)
        "PIP_NO_BUILD_ISOLATION": "no",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # `archon verify` on d2t2 follows; tests/test_scaffold.py runs stages of generated packages.
        "PYTEST_ADDOPTS": " ".join(f"--deselect {LAYOUT_TEST}[{layout}]" for layout in ("d2", "t2", "p2")),
    }
    return Reader(work, environment)


def test_who_follows_the_page_has_a_model_of_their_own(reader: Reader) -> None:
    blocks = [match.group("mark", "language", "text") for match in BLOCK.finditer(PAGE)]
    assert len(blocks) > 12
    for mark, language, text in blocks:
        reader.follow(mark, language, text)
    assert reader.done.count("diff") == 3
    assert (reader.folder / "runs/ministral/second/export/config.json").is_file()
