"""Functions of a user's own modules: found by file and definition, without running anything."""

from __future__ import annotations

import sys

import pytest

from archon_core.errors import ConfigError
from archon_core.plugins.own_functions import find_own_function, module_folders, names_own_function

PARAMETERS = ("prompt", "completion", "record")


@pytest.fixture
def find(tmp_path):
    """Find a name in a folder whose module ``my_rewards`` has the given source."""

    def found(text: str, source: str = "", module: str = "my_rewards.py"):
        file = tmp_path / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return find_own_function("reward", text, PARAMETERS, folders=[tmp_path])

    return found


def test_only_module_and_function_name_an_own_function():
    for text in ("my_rewards:score", "my_rewards.score", "pkg.rewards:score", "pkg.rewards.score", "über.größe"):
        assert names_own_function(text), text
    for text in ("gsm8k", "math-verify", "my rewards.score", "a..b", ".score", "3.5"):
        assert not names_own_function(text), text


@pytest.mark.parametrize("text", ["my_rewards:score", "my_rewards.score"])
def test_a_function_is_found_in_its_file(find, tmp_path, text):
    found = find(text, "def score(prompt, completion, record):\n    return 1.0\n")
    assert (found.target, found.folder, found.file) == ("my_rewards:score", tmp_path, tmp_path / "my_rewards.py")


def test_modules_of_packages_are_found_with_and_without_an_init_file(find, tmp_path):
    source = "def score(*arguments): ..."
    assert find("pkg.math:score", source, "pkg/math.py").file == tmp_path / "pkg/math.py"
    assert find("pkg.rewards:score", source, "pkg/rewards/__init__.py").file == tmp_path / "pkg/rewards/__init__.py"


def test_nothing_of_the_file_runs(find, tmp_path):
    find("my_rewards:score", f"open({str(tmp_path / 'mark')!r}, 'w')\ndef score(p, c, r): ...")
    assert not (tmp_path / "mark").exists()
    assert "my_rewards" not in sys.modules


@pytest.mark.parametrize(
    "source",
    [
        "def score(prompt, completion, record, *, scale=1.0): ...",
        "def score(prompt, completion, /, *rest): ...",
        "def score(prompt='', completion='', record=None, extra=None): ...",
        "@anything\ndef score(completion): ...",
        "from elsewhere import score",
        "import somewhere as score",
        "from elsewhere import *",
        "score = make_score()",
        "score: object = make_score()",
        "try:\n    from fast import score\nexcept ImportError:\n    def score(p, c, r): ...",
        "if True:\n    def score(p, c, r): ...",
        "def __getattr__(name): ...",
        "def score(completion): ...\ndef score(p, c, r): ...",
    ],
)
def test_definitions_that_can_be_called_or_cannot_be_judged_are_accepted(find, source):
    assert find("my_rewards:score", source).function == "score"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def score(completion): ...", r"score\(completion\)"),
        ("def score(a, b, c, d): ...", r"score\(a, b, c, d\)"),
        ("def score(a, b, c, *, scale): ...", r"score\(a, b, c, \*, scale\)"),
        ("async def score(a, b, c): ...", "the coroutine 'async def score'"),
        ("class score: ...", "the class 'score'"),
        ("score = 1.0", r"the constant 'score = 1\.0'"),
    ],
)
def test_other_definitions_are_refused_with_line_and_parameters(find, source, found):
    allowed = r"allowed is a function of \(prompt, completion, record\)"
    with pytest.raises(ConfigError, match=rf"^reward: found {found} in .*my_rewards\.py:2; {allowed}$"):
        find("my_rewards:score", f"\n{source}")


def test_a_missing_function_is_refused_with_the_nearest_one(find):
    with pytest.raises(
        ConfigError,
        match=r"^reward: found no 'scor' in .*my_rewards\.py; it defines score, other; correct the name; "
        r"did you mean 'score'\?$",
    ):
        find("my_rewards:scor", "def score(p, c, r): ...\ndef other(p, c, r): ...")
    with pytest.raises(ConfigError, match="it defines no function"):
        find("my_rewards:score", "import math")


def test_a_missing_module_is_refused_with_the_folders_and_the_nearest_one(find, tmp_path):
    with pytest.raises(
        ConfigError,
        match=rf"^reward: found no my_reward\.py in {tmp_path} or a folder of PYTHONPATH; "
        r"did you mean 'my_rewards'\?; start archon in the folder that holds the module, or add",
    ):
        find("my_reward:score")


@pytest.mark.parametrize("text", ["timeit:timeit", "json.loads", "archon_core.errors:did_you_mean"])
def test_modules_of_python_and_of_installed_packages_are_out_of_reach(find, text):
    with pytest.raises(ConfigError, match=r"found no .*\.py in "):
        find(text)


def test_a_file_that_is_no_python_is_refused_with_its_line(find):
    with pytest.raises(ConfigError, match=r"reward: cannot read .*my_rewards\.py:2: .*; correct the file"):
        find("my_rewards:score", "\ndef score(:")


@pytest.mark.parametrize("text", ["my_rewards:", ":score", "my-rewards:score", "my_rewards:a.b"])
def test_other_forms_are_refused(find, text):
    with pytest.raises(ConfigError, match="allowed: a plugin's name, or module:function"):
        find(text)


def test_own_modules_lie_in_the_working_directory_and_in_pythonpath(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    assert module_folders({}) == [tmp_path]
    assert module_folders({"PYTHONPATH": f"lib::{tmp_path}"}) == [tmp_path, tmp_path / "lib"]
