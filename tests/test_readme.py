"""What README.md shows runs as it is written."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_prints_log_probabilities(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\{'logprobs': tensor\(\[-\d", done.stdout)


def test_every_archon_command_that_is_shown_exists() -> None:
    shown = re.findall(r"hatch run archon (\w+)", README)
    assert {"train", "verify", "generate", "new"} <= set(shown)
    program = "from archon_core.cli.main import main; main()"
    for command in dict.fromkeys(shown):
        arguments = [sys.executable, "-c", program, command, "--help"]
        assert subprocess.run(arguments, capture_output=True, timeout=120, check=False).returncode == 0, command
