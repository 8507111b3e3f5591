"""Checks the values of a configuration: the rule of each option (``rules.option``), and dependencies between options.

A dataclass with dependent options has a method ``problems()`` that yields pairs of an option's name and a
found / allowed / fix sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from archon_core.config.rules import broken_rules


def check_options(config: Any, path: str = "") -> list[tuple[str, str]]:
    """All invalid values.

    Args:
        config: a section, or the whole configuration.
        path: the section's dotted name.

    Returns:
        Dotted name of the option and a found / allowed / fix sentence, for each.
    """
    return list(_check(config, path))


def _check(section: Any, path: str) -> Iterator[tuple[str, str]]:
    found = [*broken_rules(section)]
    # A section's class inherits from core's and plugins' dataclasses, each with its own problems().
    for cls in type(section).__mro__:
        if "problems" in vars(cls):
            found += cls.problems(section)
    for name, text in found:
        option = f"{path}.{name}".lstrip(".")
        yield option, f"{option}: {text}"
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _check(value, f"{path}.{f.name}".lstrip("."))
