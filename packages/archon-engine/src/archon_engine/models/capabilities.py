"""Checks a configuration against the capabilities that a model's spec declares."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.contracts.model import Capability, ModelSpec
from archon_core.errors import LayoutError, ModelError
from archon_core.layout import Layout

CAPABILITY_OF_AXIS: Mapping[str, Capability] = {"t": "tp", "c": "cp", "p": "pp", "e": "ep"}
"""Axis letter -> the capability that a model must declare for it. Data axes need none."""


def check_capabilities(
    spec: ModelSpec, layout: Layout, *, critic: bool, shares_prefixes: bool = False, role: str
) -> None:
    """Raise for an axis, a value head or shared prefixes that ``spec`` does not support.

    Args:
        spec: spec of the model.
        layout: how to shard it.
        critic: whether it needs a value head.
        shares_prefixes: whether packs hold a prefix once that several sequences share.
        role: the section's name, for messages.

    Raises:
        LayoutError: the layout uses an axis that the model does not support.
        ModelError: the model has no value head, or cannot share prefixes.
    """
    declared = ", ".join(sorted(spec.capabilities)) or "no capability"
    for letter, capability in CAPABILITY_OF_AXIS.items():
        size = layout.dims[letter]
        if size > 1 and capability not in spec.capabilities:
            raise LayoutError(
                f"{role}.backend {str(layout)!r}: found {letter}{size}; model {spec.name!r} does not support "
                f"{capability} (it supports {declared}); leave {letter} out, and use d for more ranks"
            )
    if critic and "critic" not in spec.capabilities:
        raise ModelError(
            f"{role}.is_critic: found true; model {spec.name!r} has no value head (it supports {declared}); set "
            f"{role}.is_critic=false, or choose a model that supports critic (`archon models`)"
        )
    if shares_prefixes and (refusal := tree_refusal(spec, role=role)):
        raise ModelError(refusal)


def tree_refusal(spec: ModelSpec, *, role: str) -> str | None:
    """The error for ``enable_tree_training`` with a model that cannot share prefixes; ``None`` if it can."""
    if "tree" in spec.capabilities:
        return None
    declared = ", ".join(sorted(spec.capabilities)) or "no capability"
    return (
        f"{role}.enable_tree_training: found true; model {spec.name!r} cannot continue one prefix in several ways, "
        f"for instance because a layer has a recurrent state (it supports {declared}); set "
        f"{role}.enable_tree_training=false, or choose a model that supports tree (`archon models`)"
    )
