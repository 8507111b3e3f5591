"""The README's test is a test."""

import importlib.util
import re
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_world_in_the_readme_runs(tmp_path, monkeypatch):
    _, source, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "test_of_the_readme.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("test_of_the_readme", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    module.test_all_ranks_have_the_sum()
