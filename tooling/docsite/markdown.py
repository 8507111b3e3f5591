"""Finds links and headings in Markdown, outside of code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^\s*(```+|~~~+)")
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$")


@dataclass(frozen=True)
class Link:
    """One link or picture.

    Attributes:
        line: number of its line, from 1.
        target: as written, with the anchor.
    """

    line: int
    target: str

    @property
    def path(self) -> str:
        return self.target.partition("#")[0]

    @property
    def anchor(self) -> str:
        return self.target.partition("#")[2]

    @property
    def is_external(self) -> bool:
        return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", self.target))


def prose_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Number, line, and whether the line is prose rather than part of a fenced block."""
    fence = ""
    for number, line in enumerate(text.split("\n"), start=1):
        mark = FENCE.match(line)
        if fence:
            yield number, line, False
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        elif mark:
            fence = mark[1]
            yield number, line, False
        else:
            yield number, line, True


def links(text: str) -> list[Link]:
    """All links and pictures, in order."""
    found = []
    for number, line, is_prose in prose_lines(text):
        if is_prose:
            found += [Link(number, match[0]) for match in LINK.finditer(_without_code(line))]
    return found


def replace_links(text: str, new_target: Callable[[Link], str]) -> str:
    """``text`` with every link's target replaced."""
    lines = []
    for number, line, is_prose in prose_lines(text):
        if is_prose:
            for match in reversed(list(LINK.finditer(_without_code(line)))):
                line = line[: match.start()] + new_target(Link(number, match[0])) + line[match.end() :]
        lines.append(line)
    return "\n".join(lines)


def anchors(text: str) -> set[str]:
    """The anchors that a code host and the site give to the headings."""
    seen: dict[str, int] = {}
    for _, line, is_prose in prose_lines(text):
        heading = HEADING.match(line) if is_prose else None
        if heading:
            anchor = slug(heading[1])
            seen[anchor] = seen.get(anchor, 0) + 1
    # Where a heading stands twice the two disagree about the second one's anchor, so there is none to link to.
    return {anchor for anchor, times in seen.items() if times == 1}


def slug(heading: str) -> str:
    """A heading's anchor: lower case, without punctuation, spaces as hyphens."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", text).strip())


def _without_code(line: str) -> str:
    """The line with code spans blanked, every other character in its place."""
    return CODE_SPAN.sub(lambda match: " " * len(match[0]), line)
