"""What the user asked for: the values of options that differ from the defaults, as text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from archon_core.config.rules import written_value


def changed(config: Any, usual: Any, option: str) -> str | None:
    """The value of an option, or those of a section's options, that differ from the defaults.

    Args:
        config: the configuration, or one of its sections.
        usual: the same with default values.
        option: dotted name below ``config``.

    Returns:
        The values as text; ``None`` if they are the defaults, or if the configuration has no such option or section.
    """
    name, _, rest = option.partition(".")
    value, default = getattr(config, name, None), getattr(usual, name, None)
    if not is_dataclass(value):
        # A section that is left out asks for nothing.
        return None if rest or value == default or is_dataclass(default) else written_value(value)
    default = type(value)() if default is None else default  # type: ignore[operator]
    if rest:
        return changed(value, default, rest)
    found = ", ".join(f"{key}={entry}" for key, entry in _differences(value, default))
    return found or ("a section" if getattr(usual, name) is None else None)


def _differences(section: Any, usual: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for f in fields(section):
        value, default, name = getattr(section, f.name), getattr(usual, f.name), f"{path}{f.name}"
        if is_dataclass(value) and default is not None:
            yield from _differences(value, default, f"{name}.")
        elif value != default:
            yield name, "a section" if is_dataclass(value) else written_value(value)
