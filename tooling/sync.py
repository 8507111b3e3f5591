"""Reinstall the workspace's packages in place: after a changed entry point, version or dependency.

hatch installs a workspace member once and does not look at its metadata again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parent.parent / "packages"


def main() -> int:
    members = sorted(path.parent for path in PACKAGES.glob("*/pyproject.toml"))
    editable = [argument for member in members for argument in ("--editable", str(member))]
    return subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *editable], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
