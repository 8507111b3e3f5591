"""Runs a command that can import Megatron-Core: ``megatron_environment.py python -m pytest ...``.

Makes a virtual environment that sees the packages of this one, torch above all, and installs Megatron-Core into it
without its dependencies, all of which are here already. ``python`` in the command is that environment's. Without a
package index that has Megatron-Core for this Python, it says why and exits with code 77. Any other failure of pip is an
error.
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

NOT_THERE = (
    "(from versions: none)",  # no such package, none for this Python, or no index
    "Max retries exceeded with url",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Read timed out",
    "Connection reset by peer",
    "Connection aborted",
    "while getting http",  # such as "HTTP error 503 while getting https://..."
)
"""Texts by which pip reports that the index, or the package on it, is unavailable. An index with other versions alone
is an error: the tested one may be misspelt or withdrawn."""


def main(command: Sequence[str]) -> int:
    """Run ``command``; returns its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="archon-megatron-"))
    try:
        python = make_environment(folder)
        if code := install(python):
            return code
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


def install(python: Path) -> int:
    """Install Megatron-Core; returns 0, or prints why it is not installed and returns the exit code."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, f"{DISTRIBUTION}=={TESTED}"], capture_output=True, text=True)
    if done.returncode == 0:
        return 0
    if is_unavailable(done.stderr):
        print(f"no {DISTRIBUTION}: {done.stderr.strip()}", file=sys.stderr)
        return UNAVAILABLE
    print(f"cannot install {DISTRIBUTION}: pip exited with code {done.returncode}: {done.stderr}", file=sys.stderr)
    return 1


def is_unavailable(errors: str) -> bool:
    """Whether pip failed because the index, or the package on it, is unavailable.

    Args:
        errors: what pip wrote to standard error.
    """
    return any(text in errors for text in NOT_THERE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
