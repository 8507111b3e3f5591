"""Writes the generated pages of docs/, or checks that the committed ones are current (``--check``)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from archon_core.config.combinations import render_rules
from archon_core.config.raw import RawMapping
from archon_core.config.reference import render_reference
from archon_core.config.sections import choose_sections
from archon_core.plugins import registry
from archon_core.plugins.loader import PLUGIN_API_SINCE
from compatibility_page import PATH as COMPATIBILITY
from compatibility_page import render_compatibility
from pipeline_pages import (
    pictures,
    render_bubbles,
    render_peaks,
    render_peaks_by_rank,
    render_splits,
    render_warm_up,
)
from release_bounds import read_constraints
from workspace import find_packages

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- made from {source} by tooling/docs.py -->\n"
END = "<!-- end -->\n"
OURS = "archon-"
"""Only packages of this repository are documented, whatever else is installed."""


def generated_pages() -> dict[Path, str]:
    """Path -> content of every generated page."""
    choice = choose_sections(registry(), RawMapping({}))
    if choice.failures:
        raise SystemExit("\n".join(choice.failures))
    sections = [section for section in (*choice.used, *choice.unused) if section.owner.startswith(OURS)]
    tables = {
        "docs/engine-options.md": {"archon_core.config.combinations": render_rules()},
        "docs/pipeline.md": {
            "archon_pipeline.schedules (bubble)": render_bubbles(),
            "archon_pipeline.schedules (peak)": render_peaks(),
            "archon_pipeline.schedules (split)": render_splits(),
        },
        "docs/memory.md": {
            "archon_pipeline.schedules (warm-up)": render_warm_up(),
            "archon_pipeline.schedules (by rank)": render_peaks_by_rank(),
        },
    }
    tested = read_constraints((ROOT / "constraints/tested.txt").read_text(encoding="utf-8"))
    return {
        ROOT / "docs/reference/options.md": render_reference(sections),
        ROOT / COMPATIBILITY: render_compatibility(find_packages(), PLUGIN_API_SINCE, tested),
        **{ROOT / page: with_tables(ROOT / page, by_source) for page, by_source in tables.items()},
        **{ROOT / "docs/images" / name: picture for name, picture in pictures().items()},
    }


def with_tables(path: Path, tables: Mapping[str, str]) -> str:
    """The page with each table between its two marks."""
    page = path.read_text(encoding="utf-8")
    for source, table in tables.items():
        begin = BEGIN.format(source=source)
        before, rest = page.split(begin)
        _, after = rest.split(END, maxsplit=1)
        page = f"{before}{begin}{table}{END}{after}"
    return page


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
