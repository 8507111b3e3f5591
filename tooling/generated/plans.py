"""Commands of docs/plan.md with what they print."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from archon_core.cli.main import main

COLUMNS = "118"

STEP = "--sequences 128 --seq 8192 --tokens 32768"
"""16 prompts with 8 completions each, and at most 32,768 tokens in a micro-batch, as AReaL's example has it."""

SHOWN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "archon plan (AReaL's layout)": (
        'archon plan --model qwen3-30b-a3b --layout "archon:(attn:d4p4t2|ffn:d2p4e4)" --device h100'
        f" --schedule 1F1B --ac-mode full {STEP}",
        ("memory of the fullest", "[", "time of one"),
    ),
    "archon plan (search)": (
        f"archon plan --model qwen3-30b-a3b --world 32 --device h100 --search {STEP}",
        (),
    ),
    "archon plan (run)": (
        "archon plan examples/archon_qwen3_moe.yaml --prompt-tokens 180 --completion-tokens 620"
        " --set disk_bandwidth=20e9",
        ("the run", "staleness", "sample"),
    ),
}
"""Name of a block -> its command, and how the paragraphs begin that the page shows; all of them without any."""


def render_plans(root: Path) -> dict[str, str]:
    """Name of a block -> its content."""
    return {name: _render(command, root, begins) for name, (command, begins) in SHOWN.items()}


def _render(command: str, folder: Path, begins: Sequence[str]) -> str:
    """The command and its output, as two blocks."""
    printed = io.StringIO()
    with _terminal(folder), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(shlex.split(command)[1:])
    parts = [[line.rstrip() for line in part.splitlines()] for part in printed.getvalue().strip().split("\n\n")]
    if begins:
        parts = [part for part in parts if part and part[0].startswith(tuple(begins))]
    text = "\n\n".join("\n".join(part) for part in parts)
    if not text:
        raise SystemExit(f"{command}: found nothing printed; docs/plan.md shows its output")
    return f"```bash\n{_wrapped(command)}\n```\n\n```text\n{text}\n```\n"


def _wrapped(command: str) -> str:
    """The command on lines that fit a page."""
    head, *options = command.split(" --")
    lines, line = [], head
    for option in options:
        if len(line) + len(option) > 100:
            lines.append(line)
            line = "   "
        line += f" --{option}"
    return " \\\n".join([*lines, line])


@contextlib.contextmanager
def _terminal(folder: Path) -> Iterator[None]:
    """A terminal of fixed width without colours, in a folder."""
    changed = {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
