"""What a model's spec declares that its architecture supports, held against what a configuration asks of it."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.contracts.model import Capability, ModelSpec
from archon_core.errors import LayoutError, ModelError
from archon_core.layout import Layout

CAPABILITY_OF_AXIS: Mapping[str, Capability] = {"t": "tp", "c": "cp", "p": "pp", "e": "ep"}
"""Letter of a layout -> what a model must declare for it. Data axes ask nothing of a model."""


def check_capabilities(spec: ModelSpec, layout: Layout, *, critic: bool, role: str) -> None:
    """Refuse what ``spec`` does not declare.

    Args:
        spec: the model's.
        layout: how it is to be sharded.
        critic: whether it is to have a value head.
        role: the section's name, for messages.

    Raises:
        LayoutError: the layout uses an axis that the model does not support.
        ModelError: it has no value head.
    """
    declared = ", ".join(sorted(spec.capabilities)) or "none"
    for letter, capability in CAPABILITY_OF_AXIS.items():
        size = layout.dims[letter]
        if size > 1 and capability not in spec.capabilities:
            raise LayoutError(
                f"{role}.backend {str(layout)!r}: found {letter}{size}; model {spec.name!r} declares the capabilities "
                f"{declared}, which {capability} is not among; leave {letter} out, and use d for more ranks"
            )
    if critic and "critic" not in spec.capabilities:
        raise ModelError(
            f"{role}.is_critic: found true; model {spec.name!r} declares the capabilities {declared} and has no value "
            f"head; set {role}.is_critic=false, or choose a model that declares critic (`archon models`)"
        )
