"""``reward: module:function``: a function of a user's own module, from the working directory or PYTHONPATH."""

from __future__ import annotations

import sys

import pytest
from run_results import rows

from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_rl.rewards.loading import load_reward
from archon_rl.rewards.source import RewardSource, reward_source
from archon_rl.rewards.source_fingerprint import function_fingerprint

REWARD = """
from my_lengths import length


def score(prompt, completion, record):
    return length(completion)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with two modules that are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "my_lengths.py").write_text("def length(text):\n    return 0.5 * len(text)\n")
    yield tmp_path
    for name in ("my_rewards", "my_lengths"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["my_rewards:score", "my_rewards.score"])
def test_a_function_is_found_and_loaded_with_the_modules_beside_it(here, name):
    source = reward_source(name, registry())
    assert source == RewardSource(name, "my_rewards:score", folder=str(here))
    loaded = load_reward(source)
    assert (loaded.name, loaded.function("p", "four", {})) == (name, 2.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from shutil import move as score\n", "'shutil'"),
        ("import os\nscore = os.execve\n", "'posix'"),
        ("import functools, shutil\nscore = functools.partial(shutil.copytree)\n", "'shutil'"),
        ("import shutil, my_lengths\nscore = shutil.move\n", "'shutil'"),
    ],
)
def test_a_function_that_another_module_defines_is_out_of_reach(here, text, found):
    (here / "my_rewards.py").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"found a function of the module {found}; allowed are functions that modules in .* define"
    ):
        load_reward(RewardSource("my_rewards:score", "my_rewards:score", folder=str(here)))


def test_functions_of_modules_beside_it_and_decorated_ones_are_the_users_own(here):
    for text in ("from my_lengths import score\n", "import my_lengths\nscore = my_lengths.wrapped\n"):
        (here / "my_rewards.py").write_text(text)
        (here / "my_lengths.py").write_text(
            "import functools\n"
            "def score(prompt, completion, record):\n    return 1.0\n"
            "wrapped = functools.lru_cache(functools.wraps(score)(lambda *a: score(*a)))\n"
        )
        sys.modules.pop("my_rewards", None)
        loaded = load_reward(RewardSource("my_rewards:score", "my_rewards:score", folder=str(here)))
        assert loaded.function("p", "c", ()) == 1.0


def test_an_environment_inside_the_folder_does_not_count_as_the_users_own(here, monkeypatch):
    installed = here / ".venv" / "lib" / "python3.11" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "my_rewards.py").write_text(REWARD.replace("length(completion)", "-1.0"))
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(ConfigError, match=r"found the module 'my_rewards' in .*site-packages.* already"):
        load_reward(RewardSource("my_rewards:score", "my_rewards:score", folder=str(here)))


def test_the_name_of_a_plugin_goes_first():
    assert reward_source("exact", registry()).target == "archon_rl.rewards.arithmetic:final_number_reward"


def test_the_fingerprint_covers_the_users_modules_and_no_others(here):
    source = reward_source("my_rewards:score", registry())

    def fingerprint() -> str:
        for name in ("my_rewards", "my_lengths"):
            sys.modules.pop(name, None)
        load_reward(source)
        return function_fingerprint(source).digest

    before = fingerprint()
    assert function_fingerprint(source).about == "reward 'my_rewards:score' of my_rewards"
    (here / "unused.py").write_text("")
    assert fingerprint() == before
    (here / "my_lengths.py").write_text("def length(text):\n    return 1.5 * len(text)\n")
    assert fingerprint() != before


def test_the_fingerprint_of_a_function_is_the_same_before_its_import(here):
    source = reward_source("my_rewards:score", registry())
    before = function_fingerprint(source)
    assert "my_rewards" not in sys.modules
    load_reward(source)
    assert function_fingerprint(source) == before


def test_a_file_cannot_take_the_place_of_a_module_of_python(here):
    (here / "json.py").write_text("def loads(prompt, completion, record): ...")
    with pytest.raises(ConfigError, match=r"found the module 'json' in .*json/__init__\.py already; .*rename the file"):
        load_reward(reward_source("json:loads", registry()))


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("from functools import partial\nscore = partial(print, 1)", "found a function of the module 'builtins'"),
        ("score = lambda prompt, completion, record: 1.0", None),
        ("score = lambda completion: 1.0", r"found <lambda>\(completion\); allowed is a function of \(prompt, compl"),
        ("from collections import OrderedDict as score", "found the class OrderedDict"),
        ("import math\nscore = math.pi + 0", "found a value of type float"),
        ("import asyncio\nscore = asyncio.sleep", "found the coroutine sleep"),
        ("from math import *", r"'my_rewards' was imported but has no 'score'"),
        ("raise SystemExit(0)\nfrom math import *", r"importing 'my_rewards' from .* raised SystemExit: 0; correct"),
        ("import a_missing_package\ndef score(p, c, r): ...", "raised ModuleNotFoundError: No module named 'a_missing"),
    ],
)
def test_what_only_the_import_shows_is_checked_before_the_first_call(here, definition, message):
    (here / "my_rewards.py").write_text(definition)
    source = reward_source("my_rewards:score", registry())
    if message is None:
        assert load_reward(source).name == "my_rewards:score"
    else:
        with pytest.raises(ConfigError, match=rf"^reward 'my_rewards:score': .*{message}"):
            load_reward(source)


@pytest.mark.parametrize(("ranks", "layout"), [(1, "d1"), (2, "d2")])
def test_a_run_with_reward_processes_gives_the_numbers_of_one_without(here, run, ranks, layout):
    options = ("reward=my_rewards:score", "trainer.max_steps=2", "trainer.eval_every=0")
    options += (f"actor.backend=bigram:{layout}",)
    beside = run(*options, "rewards.processes=2", "trial_name=beside", ranks=ranks)
    inside = run(*options, "rewards.processes=0", "trial_name=inside", ranks=ranks)
    assert rows(beside) == rows(inside)
    assert any(row["reward"] > 0 for row in rows(beside) if "reward" in row)


def test_a_changed_function_is_found_when_the_run_is_resumed(here, run):
    options = ("reward=my_rewards:score", "rewards.processes=1", "trainer.max_steps=3", "trainer.eval_every=0")
    with pytest.raises(KeyboardInterrupt):
        run(*options, stop_after=2)
    (here / "my_lengths.py").write_text("def length(text):\n    return 1.5 * len(text)\n")
    with pytest.raises(ConfigError, match=r"(?s)reward: found reward 'my_rewards:score'.*accept_changed=\[reward\]"):
        run(*options, "trainer.resume=true")
    run(*options, "trainer.resume=true", "trainer.accept_changed=[reward]")


HANGS = """
import time


def score(prompt, completion, record):
    if record["answer"] == "8":
        time.sleep(1000)
    return float(len(completion))
"""


def test_a_run_goes_on_without_the_prompts_whose_reward_hangs(here, run):
    (here / "my_rewards.py").write_text(HANGS)
    folder = run(
        *("reward=my_rewards:score", "rewards.processes=2", "rewards.timeout_seconds=0.5", "rewards.max_failed=1"),
        *("trainer.max_steps=1", "trainer.eval_every=0", "data.validation_size=0", "data.batch_size=25"),
        *("gconfig.n_samples=2", "data.arithmetic.max_operand=4"),
    )
    # One of the 25 sums from 0 + 0 to 4 + 4 is 8.
    found = [row for row in rows(folder) if "reward" in row]
    assert [(row["reward/failed"], row["reward/timeout"]) for row in found] == [(2, 2)]
    assert "it gave no answer within 0.5 s (rewards.timeout_seconds)" in " ".join(
        (folder.path / "output.txt").read_text(encoding="utf-8").split()
    )
