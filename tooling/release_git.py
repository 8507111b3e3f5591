"""What git knows about a release: whether its tag exists, and whether the tree is what would be tagged."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitState:
    """What is known before a release.

    Attributes:
        tagged: the commit that the tag names; ``None`` when there is no such tag.
        head: the commit that is checked out.
        changed: files of the package with changes that are not committed.
    """

    tagged: str | None
    head: str
    changed: tuple[str, ...]


def read_git(root: Path, tag: str, folder: Path) -> GitState | None:
    """What git says, or ``None`` where there is no repository."""
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return None
    tagged = _git(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}")
    changed = _git(root, "status", "--porcelain", "--", str(folder)) or ""
    return GitState(tagged, head, tuple(line[3:] for line in changed.splitlines()))


def git_problems(state: GitState, tag: str, *, edits: bool) -> list[str]:
    """What keeps a release from being what its tag will name.

    Args:
        state: of the repository.
        tag: of the release.
        edits: whether version or change log have to be written first.
    """
    problems = []
    if state.changed:
        listed = ", ".join(state.changed)
        problems.append(f"found changes that are not committed: {listed}; a release is what its tag names: commit them")
    if state.tagged is not None and edits:
        problems.append(f"tag {tag} exists, but the change log has no such release; choose the next version")
    elif state.tagged is not None and state.tagged != state.head:
        problems.append(f"tag {tag} names another commit; to build that again: git checkout {tag}")
    return problems


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
