"""Loads environments of verifiers by name, once per process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from archon_core.errors import ConfigError


def load_verifiers(name: str, arguments: Mapping[str, Any], *, option: str) -> Any:
    """An environment of verifiers; equal names and arguments give the same object.

    Args:
        name: of an installed environment.
        arguments: of its ``load_environment``.
        option: that names it, for messages.

    Raises:
        ConfigError: verifiers is not installed or too new, or the environment cannot be loaded.
    """
    if not name:
        raise ConfigError(f"{option}: found none; name an installed environment of verifiers")
    return _load(name, json.dumps(dict(arguments), sort_keys=True), option)


@lru_cache(maxsize=8)
def _load(name: str, arguments: str, option: str) -> Any:
    try:
        import verifiers
    except ModuleNotFoundError as error:
        if error.name != "verifiers":
            raise  # the package is there, and its own import fails
        raise ConfigError(
            f"{option}: found {name!r}, for which verifiers is not installed; pip install 'archon-tasks[verifiers]'"
        ) from error
    if not hasattr(verifiers, "load_environment"):
        raise ConfigError(
            f"{option}: found verifiers {verifiers.__version__}, whose environments run agents; allowed are versions "
            "below 0.2: pip install 'archon-tasks[verifiers]'; or run the agent with workflow=agent"
        )
    try:
        return verifiers.load_environment(name, **json.loads(arguments))
    except Exception as error:  # code of the environment
        raise ConfigError(
            f"{option}: verifiers cannot load {name!r}: {type(error).__name__}: {error}; install the environment, or "
            "correct its arguments"
        ) from error
