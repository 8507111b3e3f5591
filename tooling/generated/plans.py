"""Commands of docs/plan.md with what they print."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from archon_core.cli.main import main

COLUMNS = "112"


def render_output(command: str, folder: Path, *, sections: Sequence[str] = ()) -> str:
    """The command and its output, as two blocks.

    Args:
        command: starts with ``archon``.
        folder: to run it in.
        sections: begin of the paragraphs to show; all without any.
    """
    printed = io.StringIO()
    with _in(folder), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(shlex.split(command)[1:])
    paragraphs = [[line.rstrip() for line in part.splitlines()] for part in printed.getvalue().strip().split("\n\n")]
    if sections:
        paragraphs = [part for part in paragraphs if part and part[0].startswith(tuple(sections))]
    text = "\n\n".join("\n".join(part) for part in paragraphs)
    if not text:
        raise SystemExit(f"{command}: printed nothing for docs/plan.md")
    return f"```bash\n{command}\n```\n\n```text\n{text}\n```\n"


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": COLUMNS, "NO_COLOR": "1"}
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
