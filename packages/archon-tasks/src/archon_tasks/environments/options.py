"""Reads ``environment.options`` of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.errors import ConfigError, did_you_mean

OPTION = "environment.options"


def read_options(environment: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults. A default's type is the type that is allowed; ``None`` allows any.

    Raises:
        ConfigError: an option is unknown, or its value has another type.
    """
    for name, value in given.items():
        if name not in defaults:
            known = list(defaults)
            raise ConfigError(
                f"{OPTION}: found {name!r} for the environment {environment!r}; allowed are {', '.join(known)}"
                f"{did_you_mean(str(name), known)}"
            )
        default = defaults[name]
        allowed = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (not isinstance(value, allowed) or isinstance(value, bool)):
            raise ConfigError(
                f"{OPTION}.{name}: found {value!r}; the environment {environment!r} allows values of type "
                f"{type(default).__name__}, such as {default!r}"
            )
    return {**defaults, **given}
