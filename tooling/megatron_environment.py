"""Runs a command that can import Megatron-Core: ``megatron_environment.py python -m pytest ...``.

Makes a virtual environment that sees the packages of this one, torch above all, and installs Megatron-Core into it
without its dependencies, all of which are here already. ``python`` in the command is that environment's. If
Megatron-Core cannot be installed, it says why and exits with code 77.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from archon_testing.megatron_oracle.architecture import DISTRIBUTION, TESTED

UNAVAILABLE = 77


def main(command: Sequence[str]) -> int:
    """Run ``command``; returns its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="archon-megatron-"))
    try:
        python = make_environment(folder)
        if problem := install(python):
            print(f"no {DISTRIBUTION}: {problem}", file=sys.stderr)
            return UNAVAILABLE
        program, *arguments = command
        return subprocess.run([str(python) if program == "python" else program, *arguments]).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_environment(folder: Path) -> Path:
    """The Python of a new virtual environment that also sees the packages of this one."""
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = folder / "lib" / version / "site-packages"
    # addsitedir, because a path alone would not read the .pth files of packages in editable mode.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (own / "shared.pth").write_text("".join(lines), encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path) -> str:
    """Install Megatron-Core; returns why it cannot be installed, empty if it was."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, f"{DISTRIBUTION}=={TESTED}"], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"pip exited with code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
