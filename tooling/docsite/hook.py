"""mkdocs hooks: adds pages from outside of docs/, and rewrites links between files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mkdocs loads this file by its path

from docsite.markdown import Link, links, replace_links
from docsite.repository import BrokenLinkError, Repository, page_of, relative_link, render_source, source_page_of

REPOSITORY = Repository(Path(__file__).resolve().parents[2])


def on_config(config: Any) -> Any:
    """Put the pages that a pattern in the navigation stands for in its place."""
    config.nav = [_expanded(entry) for entry in config.nav]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the Markdown outside of docs/, and the sources that any page links to."""
    in_navigation = set(_pages_of(config.nav))
    for file, page in REPOSITORY.outside_pages().items():
        inclusion = InclusionLevel.INCLUDED if page in in_navigation else InclusionLevel.NOT_IN_NAV
        path = str(REPOSITORY.root / file)
        files.append(File.generated(config, page, abs_src_path=path, inclusion=inclusion))
    for file in sorted(_linked_sources()):
        content = render_source(file, (REPOSITORY.root / file).read_text(encoding="utf-8"))
        page = source_page_of(file)
        files.append(File.generated(config, page, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    file = _file_of(page.file.src_uri)
    return markdown if file is None else replace_links(markdown, lambda link: _site_target(file, link))


def _site_target(file: str, link: Link) -> str:
    if link.is_external or not link.path:
        return link.target
    target = _resolved(file, link)
    here, there = page_of(file), page_of(target) or source_page_of(target)
    assert here is not None, f"{file} is a page"
    return relative_link(here, there) + (f"#{link.anchor}" if link.anchor else "")


def _resolved(file: str, link: Link) -> str:
    """The file that a link leads to. Raises PluginError, which mkdocs shows without a traceback."""
    try:
        return REPOSITORY.resolve(file, link.path)
    except BrokenLinkError as error:
        raise PluginError(f"line {link.line} of {error}") from error


def _linked_sources() -> set[str]:
    """The files without a page of their own that pages link to."""
    found = set()
    for file in REPOSITORY.all_markdown():
        if page_of(file) == "index.md" and not file.startswith("docs/"):
            continue  # the README: the landing page stands for it
        for link in links((REPOSITORY.root / file).read_text(encoding="utf-8")):
            if not link.is_external and link.path:
                target = _resolved(file, link)
                if page_of(target) is None:
                    found.add(target)
    return found


def _file_of(page: str) -> str | None:
    """The file of the repository that a page is made from; ``None`` for shown sources."""
    for file, other in REPOSITORY.outside_pages().items():
        if other == page:
            return file
    return None if page.startswith("source/") else f"docs/{page}"


def _expanded(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    [(title, value)] = entry.items()
    if isinstance(value, list):
        return {title: [_expanded(inner) for inner in value]}
    if "*" not in value:
        return entry
    pages = [page for file, page in REPOSITORY.outside_pages().items() if Path(file).match(value)]
    return {title: [{Path(page).stem: page} for page in pages]}


def _pages_of(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for value in inner for page in _pages_of(value)]
