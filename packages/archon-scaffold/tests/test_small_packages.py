"""Packages of the other kinds, whatever the length of their names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from archon_scaffold.models.writing import write_model
from archon_scaffold.names import check_name
from archon_scaffold.small_packages import REQUIRES, write_small


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("name", ["x", "a-name-of-forty-letters-" + "x" * 16])
@pytest.mark.parametrize("kind", [*REQUIRES, "model"])
def test_a_package_is_clean_by_its_own_linter_settings(tmp_path, kind, name):
    package, folder = check_name(name, kind), tmp_path / name
    if kind == "model":
        write_model(package, folder, None)
    else:
        write_small(kind, package, folder)
    for command in (["check", "--no-cache"], ["format", "--check", "--diff", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
