"""Rotations that keep sequences from sharing prefixes (``enable_tree_training``). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotations whose frequencies depend on the length of the sequence, above some length."""


def rotation_refusal(kind: str, limit: int | None, *, role: str) -> str:
    """The error for ``enable_tree_training`` with a rotation whose frequencies depend on the length.

    Args:
        kind: its ``rope_type``.
        limit: the length above which they do; ``None`` if unknown.
        role: the section's name.
    """
    long = "long sequences" if limit is None else f"sequences above {limit} tokens"
    return (
        f"{role}.enable_tree_training: found true with rope_type {kind!r}, which rotates {long} by their length, so "
        f"equal prefixes of two sequences can differ; set {role}.enable_tree_training=false, or give the model another "
        "rope_type"
    )


def refuse_rotations(entries: Mapping[str, Any], *, role: str) -> str | None:
    """The error for ``enable_tree_training`` with the model of a ``config.json``; ``None`` if it can share prefixes.

    Args:
        entries: of the ``config.json``.
        role: the section's name.
    """
    of_text = entries.get("text_config")
    own = of_text if isinstance(of_text, Mapping) else entries
    for parameters in _rotations(own):
        # transformers before version 5 wrote ``type``.
        kind = parameters.get("rope_type", parameters.get("type"))
        if kind in BY_LENGTH:
            return rotation_refusal(kind, _limit(kind, parameters, own), role=role)
    return None


def _rotations(entries: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotation of all layers, or that of each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = entries.get(name)
        if isinstance(found, Mapping):
            yield found
            yield from (each for each in found.values() if isinstance(each, Mapping))


def _limit(kind: str, parameters: Mapping[str, Any], entries: Mapping[str, Any]) -> int | None:
    """As ``archon_engine.nn.rotary.fixed_frequencies_reach``."""
    limit = entries.get("max_position_embeddings")
    if kind == "longrope":
        name = "original_max_position_embeddings"
        limit = parameters.get(name) or entries.get(name) or limit
    return limit if isinstance(limit, int) else None
