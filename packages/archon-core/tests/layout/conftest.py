"""What the layout tests share: a reader of error messages, which insists on their three statements."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings

# Several workers share a few cores, so that a single case may take long for no fault of its own.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@dataclass(frozen=True)
class Message:
    """A layout error taken apart.

    Attributes:
        option: what it begins with.
        found, allowed, fix: its three statements.
        shown: the layout as printed above the carets.
        carets: columns that are marked, as (first, after the last) pairs.
    """

    option: str
    found: str
    allowed: str
    fix: str
    shown: str
    carets: list[tuple[int, int]]

    @property
    def suggestions(self) -> list[str]:
        """The layouts that the fix names; each is followed by its number of ranks."""
        return re.findall(r"'([^']*)' \((?:[0-9]+ ranks?|on the ranks of the trainer)\)", self.fix)


@pytest.fixture(scope="session")
def read_message() -> Callable[[Exception], Message]:
    def read(error: Exception) -> Message:
        first, shown, carets, allowed, fix = str(error).split("\n")
        option, found = re.fullmatch(r"(.+?) ['\"].*?: found (.+)", first).groups()
        assert shown.startswith("  ")
        assert re.fullmatch(r"  [ ^]*\^", carets), "at least one caret, nothing else"
        return Message(
            option=option,
            found=found,
            allowed=re.fullmatch(r"allowed: (.+)", allowed)[1],
            fix=re.fullmatch(r"fix: (.+)", fix)[1],
            shown=shown[2:],
            carets=[match.span() for match in re.finditer(r"\^+", carets[2:])],
        )

    return read
