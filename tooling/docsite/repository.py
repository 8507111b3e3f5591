"""Maps files of the repository to pages of the site, and links between files to links between pages.

Pages of ``docs/`` keep their paths. The table below places other Markdown files (READMEs, changelogs); any other linked
file, such as a test or an example, becomes a page with its source text.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

DOCS = "docs/"

OUTSIDE = (
    (r"README\.md", r"index.md"),  # the landing page stands for the README
    (r"CONTRIBUTING\.md", r"contributing.md"),
    (r"CHANGELOG\.md", r"changelog/index.md"),
    (r"packages/([\w-]+)/README\.md", r"packages/\1.md"),
    (r"packages/([\w-]+)/CHANGELOG\.md", r"changelog/\1.md"),
)
"""Markdown outside of ``docs/`` -> its page in the site, as patterns."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash", ".json": "json", ".txt": "text"}
"""How source text is coloured."""


class BrokenLinkError(ValueError):
    """A link leads nowhere."""


@dataclass(frozen=True)
class Repository:
    """The files that links may lead to.

    Attributes:
        root: the folder that holds ``docs/``.
    """

    root: Path

    def outside_pages(self) -> dict[str, str]:
        """File -> page of the Markdown outside of ``docs/`` that is part of the site, but for the README."""
        found = [*self.root.glob("*.md"), *self.root.glob("packages/*/*.md")]
        names = sorted(path.relative_to(self.root).as_posix() for path in found)
        return {name: page for name in names if (page := page_of(name)) is not None and name != "README.md"}

    def all_markdown(self) -> list[str]:
        """Every file whose links are checked as a code host has them."""
        in_docs = (path.relative_to(self.root).as_posix() for path in self.root.glob("docs/**/*.md"))
        return sorted({"README.md", *self.outside_pages(), *in_docs})

    def resolve(self, file: str, target: str) -> str:
        """The file that a relative link of ``file`` leads to; a folder's is its README.

        Raises:
            BrokenLinkError: there is no such file, or a folder without a README.
        """
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target)) if target else file
        where = self.root / path
        if path.startswith("../") or not where.exists():
            raise BrokenLinkError(f"{file}: found a link to {target}; there is no {path}")
        if where.is_dir():
            if not (where / "README.md").is_file():
                raise BrokenLinkError(f"{file}: found a link to the folder {target}, which has no README; name a file")
            return posixpath.normpath(f"{path}/README.md")
        return path


def page_of(file: str) -> str | None:
    """The page of a file as a path in the site's sources; ``None`` for files that are no page of their own."""
    if file.startswith(DOCS):
        return file.removeprefix(DOCS)
    for pattern, page in OUTSIDE:
        if re.fullmatch(pattern, file):
            return re.sub(pattern, page, file)
    return None


def source_page_of(file: str) -> str:
    """The page that shows a file's text."""
    return f"source/{file}.md"


def render_source(file: str, text: str) -> str:
    """A page with the text of a file.

    Raises:
        BrokenLinkError: the file is of a kind that is not shown.
    """
    suffix = Path(file).suffix
    if suffix not in LANGUAGES:
        raise BrokenLinkError(f"{file}: found a link to it; shown as source are {', '.join(LANGUAGES)} files only")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"# {file}\n\n{fence}{LANGUAGES[suffix]}\n{text.rstrip()}\n{fence}\n"


def relative_link(page: str, target: str) -> str:
    """How ``page`` links to ``target``, both paths in the site's sources."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
