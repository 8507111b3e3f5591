"""Checks the built site: every link and anchor exists, nothing is loaded from other hosts, and no Markdown is left
unrendered. Usage: ``python tooling/docsite/built_site.py site``"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when it is run as a script

from docsite.source_links import external_problem

LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "object": "data"}
"""Elements that load a file -> the attribute with its address."""
LOADING_RELATIONS = {"stylesheet", "preload", "icon", "preconnect", "dns-prefetch", "modulepreload"}
LEFT_OVER = re.compile(r"^\s*(\|.*\||\|?\s*:?-{3,}:?\s*\|.*|```.*|[-*] \S.*|\d+\. \S.*|#{2,6} \S.*)$", re.MULTILINE)
"""Patterns of unrendered Markdown: table rows, fences, list items, headings."""


@dataclass
class BuiltPage(HTMLParser):
    """What is checked of one HTML file.

    Attributes:
        ids: the anchors.
        links: where it links to.
        loads: what a browser loads with it.
        texts: texts of paragraphs, cells and items, without code.
    """

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    _within: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values and tag != "meta"}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and LOADING_RELATIONS & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        if tag in LOADING and LOADING[tag] in values:
            self.loads.append(values[LOADING[tag]])
        if tag in ("p", "pre", "code", "script", "style"):
            self._within.append(tag)
            if tag == "p":
                self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._within == ["p"]:
            self.texts[-1] += data


def problems(site: Path) -> Iterator[str]:
    """One sentence per error, in all HTML files under ``site``."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = BuiltPage()
        pages[path].feed(path.read_text(encoding="utf-8"))
    if not pages:
        yield f"{site}: found no HTML; build the site first: mkdocs build"
    for path, page in pages.items():
        name = path.relative_to(site)
        is_error_page = name.name == "404.html"  # mkdocs writes its links for the root of a server
        for target in page.loads:
            if urlsplit(target).netloc:
                yield f"{name}: loads {target}; a page loads nothing from elsewhere"
            elif not is_error_page:
                yield from _internal(site, path, target, pages)
        for target in page.links:
            if urlsplit(target).scheme or urlsplit(target).netloc:
                problem = external_problem(target)
                if problem:
                    yield f"{name}: {problem}"
            elif not is_error_page:
                yield from _internal(site, path, target, pages)
        for text in page.texts:
            left = LEFT_OVER.search(text)
            if left:
                yield f"{name}: found Markdown that was not understood: {left[0].strip()[:80]}"


def _internal(site: Path, path: Path, target: str, pages: dict[Path, BuiltPage]) -> Iterator[str]:
    parts = urlsplit(target)
    where = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if where.is_dir():
        where = where / "index.html"
    if not where.is_relative_to(site.resolve()) or not where.is_file():
        yield f"{path.relative_to(site)}: found a link to {target}; there is no such file"
    elif parts.fragment and where in pages and unquote(parts.fragment) not in pages[where].ids:
        yield f"{path.relative_to(site)}: found a link to {target}; there is no such anchor"


def main() -> int:
    """Print what is wrong; 1 when anything is."""
    if len(sys.argv) != 2:
        print("usage: python tooling/docsite/built_site.py FOLDER, the one that mkdocs build wrote", file=sys.stderr)
        return 2
    site = Path(sys.argv[1]).resolve()
    found = list(problems(site))
    print("\n".join(found) or f"links and anchors of {len(list(site.rglob('*.html')))} pages lead somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
