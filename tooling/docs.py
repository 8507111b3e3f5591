"""Writes the generated pages of docs/, or checks that the committed ones are current (``--check``)."""

from __future__ import annotations

import sys
from pathlib import Path

from archon_core.config.combinations import render_rules
from archon_core.config.raw import RawMapping
from archon_core.config.reference import render_reference
from archon_core.config.sections import choose_sections
from archon_core.plugins import registry

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- made from archon_core.config.combinations by tooling/docs.py -->\n"
END = "<!-- end -->\n"
OURS = "archon-"
"""Only packages of this repository are documented, whatever else is installed."""


def generated_pages() -> dict[Path, str]:
    """Path -> content of every generated page."""
    choice = choose_sections(registry(), RawMapping({}))
    if choice.failures:
        raise SystemExit("\n".join(choice.failures))
    sections = [section for section in (*choice.used, *choice.unused) if section.owner.startswith(OURS)]
    options = ROOT / "docs/engine-options.md"
    return {
        ROOT / "docs/reference/options.md": render_reference(sections),
        options: with_table(options.read_text(encoding="utf-8"), render_rules()),
    }


def with_table(page: str, table: str) -> str:
    """``page`` with ``table`` between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table}{END}{after}"


def main() -> int:
    """Write the pages, or return 1 when ``--check`` finds one that is not current."""
    stale = 0
    for path, content in generated_pages().items():
        current = path.read_text(encoding="utf-8") if path.is_file() else None
        if current == content:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is not current; run: python tooling/docs.py", file=sys.stderr)
            stale = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
