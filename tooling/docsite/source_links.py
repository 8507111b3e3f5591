"""Checks links in the sources: relative links must lead to files, anchors to headings."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from docsite.markdown import Link, anchors, links
from docsite.repository import BrokenLinkError, Repository


def broken_links(repository: Repository) -> Iterator[str]:
    """One sentence per broken link, in all Markdown of the repository."""
    for file in repository.all_markdown():
        for link in links((repository.root / file).read_text(encoding="utf-8")):
            problem = external_problem(link.target) if link.is_external else _problem(repository, file, link)
            if problem:
                yield f"{file}:{link.line}: {problem}"


def external_problem(target: str) -> str | None:
    """What is wrong with a link to elsewhere, as far as its text tells; nothing is fetched."""
    parts = urlsplit(target)
    if parts.scheme == "mailto":
        return None if "@" in parts.path else f"found {target}; a mailto: link has an address"
    if parts.scheme not in ("http", "https"):
        return f"found {target}; allowed are relative links, https: and mailto:"
    return None if "." in parts.netloc and " " not in target else f"found {target}; there is no host in it"


def _problem(repository: Repository, file: str, link: Link) -> str | None:
    if link.target.startswith("/"):
        return f"found {link.target}; links between files are relative"
    try:
        target = repository.resolve(file, link.path)
    except BrokenLinkError as error:
        return str(error)
    if not link.anchor:
        return None
    if not target.endswith(".md"):
        return f"found an anchor in {link.target}; only headings of Markdown have anchors"
    known = anchors((repository.root / target).read_text(encoding="utf-8"))
    return None if link.anchor in known else f"found #{link.anchor}; {target} has no such heading, or has it twice"
