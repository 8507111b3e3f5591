"""Rules for the values of an option beyond its type, declared on the option's field.

::

    @dataclass
    class Sampling:
        top_k: int = option(0, NOT_NEGATIVE, fix="0 keeps all tokens")
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from archon_core.errors import did_you_mean

MAX_NAME_BYTES = 255
MAX_PATH_LENGTH = 4000
"""Limits of file systems and kernels, rounded down."""

NOT_IN_NAMES = frozenset({*"/\\", *map(chr, range(32)), chr(127)})
"""Characters that a folder's name cannot have here: separators and control characters, which break lines of scripts."""

MAX_SHOWN = 200
"""Largest number of characters of a value in a message."""

Rule = Callable[[Any], str | None]
"""Takes a non-null value; returns ``None`` if it is valid, else a description of the allowed values."""


def option(default: Any, allowed: Rule, *, fix: str = "") -> Any:
    """A dataclass field with a rule for its values. Null is valid if the field's type allows it.

    Args:
        default: an immutable value.
        allowed: the rule.
        fix: appended to the message after the allowed values.
    """
    return dataclasses.field(default=default, metadata={"rule": allowed, "fix": fix})


def broken_rules(section: Any) -> Iterator[tuple[str, str]]:
    """Name and found / allowed / fix sentence of each option of a dataclass, sections aside, that breaks its rule."""
    for f in dataclasses.fields(section):
        value, rule = getattr(section, f.name), f.metadata.get("rule")
        allowed = None if value is None or rule is None else rule(value)
        if allowed is not None:
            fix = f"; {f.metadata['fix']}" if f.metadata["fix"] else ""
            yield f.name, f"found {shown_value(value)}; allowed are {allowed}{fix}"


def one_of(*choices: str) -> Rule:
    """The value is one of these texts."""

    def rule(value: str) -> str | None:
        return None if value in choices else ", ".join(choices) + did_you_mean(value, choices)

    return rule


def number(
    *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """The value is finite and in this range."""
    parts = [
        f"from {least:g}" if least > -math.inf else "",
        f"above {above:g}" if above > -math.inf else "",
        f"up to {most:g}" if most < math.inf else "",
        f"below {below:g}" if below < math.inf else "",
    ]
    allowed = "numbers " + " ".join(filter(None, parts)) if any(parts) else "finite numbers"

    def rule(value: float) -> str | None:
        # Integers skip math.isfinite, which converts to float and fails for 400 digits.
        finite = isinstance(value, int) or math.isfinite(value)
        return None if finite and least <= value <= most and above < value < below else allowed

    return rule


def each_one_of(*choices: str) -> Rule:
    """The value is a list of these texts."""

    def rule(values: Sequence[str]) -> str | None:
        wrong = next((value for value in values if value not in choices), None)
        return None if wrong is None else f"lists of {', '.join(choices)}{did_you_mean(wrong, choices)}"

    return rule


def folder_name(value: str) -> str | None:
    """The value can name one folder."""
    if value.strip() and value not in (".", "..") and not set(value) & NOT_IN_NAMES and not _is_too_long(value):
        return None
    return f"names of folders, without slashes and control characters, of at most {MAX_NAME_BYTES} bytes"


def path_or_id(value: str) -> str | None:
    """The value is a path that the operating system accepts, or a hub id."""
    if "\0" in value or _is_too_long(value) or len(value) > MAX_PATH_LENGTH:
        return f"a path without NUL characters, whose names have at most {MAX_NAME_BYTES} bytes each, or a hub id"
    try:
        Path(value).expanduser()
    except RuntimeError:
        return "a path; '~NAME' stands for the home folder of a user of this machine, './~NAME' for a folder here"
    return None


def written_value(value: Any, *, quoted: bool = False) -> str:
    """A value as configuration files write it, such as ``null``, ``true`` and ``{alpha: 1}``.

    Args:
        value: of an option or a section.
        quoted: put texts in quotes.
    """
    write = functools.partial(written_value, quoted=quoted)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str() if quoted:
            return repr(value)
        case Mapping():
            return f"{{{', '.join(f'{key}: {write(entry)}' for key, entry in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(write, value))}]"
    return f"{value}"


def shown_value(value: Any) -> str:
    """A value for messages, shortened; texts in quotes."""
    text = written_value(value, quoted=True)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}... ({len(value if isinstance(value, str) else text)} characters)"


def _is_too_long(text: str) -> bool:
    return any(len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES for name in text.split("/"))


POSITIVE = number(least=1)
NOT_NEGATIVE = number(least=0)
SHARE = number(least=0, most=1)
