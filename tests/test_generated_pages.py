"""The pages of docs/ that are made from the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_committed_pages_are_current() -> None:
    check = [sys.executable, str(ROOT / "tooling/docs.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
