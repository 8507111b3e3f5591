"""The part of a configuration that its run uses: checks of files, layouts and engines read nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass, replace
from typing import Any


def without_unused(config: Any, unused: Iterable[str]) -> Any:
    """``config`` with default values in place of unused options and sections.

    Args:
        config: a section, or the whole configuration, whose fields all have defaults.
        unused: dotted names below ``config``.
    """
    for option in unused:
        config = _reset(config, type(config)(), option)
    return config


def _reset(config: Any, usual: Any, option: str) -> Any:
    name, _, rest = option.partition(".")
    value, default = getattr(config, name), getattr(usual, name)
    if rest and not is_dataclass(value):
        return config  # an option of a section that is left out already
    if rest:
        value = _reset(value, type(value)() if default is None else default, rest)
        return replace(config, **{name: value})
    return replace(config, **{name: default})
