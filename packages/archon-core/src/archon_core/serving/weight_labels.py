"""Labels of weights on servers that take texts as versions, such as vLLM and SGLang."""

from __future__ import annotations

from archon_core.errors import ServerError

DEFAULT_LABEL = "default"
"""Both programs' label of the weights that they loaded at their start."""

BROKEN_LABEL = "broken"
"""A driver's label of weights that may be loaded in part: no token that they make is used."""

NO_VERSION = -1
"""The version of weights that no trainer published."""


def version_of(label: str) -> int:
    """The version of a label.

    Raises:
        ServerError: it is neither a number nor the default, or the weights are broken.
    """
    if label == DEFAULT_LABEL:
        return NO_VERSION
    if label == BROKEN_LABEL:
        raise ServerError("weight version: found weights that may be loaded in part only; restart the server")
    if label.lstrip("-").isdigit():
        return int(label)
    raise ServerError(f"weight version: found {label!r}; allowed are numbers; another program published to the server")
