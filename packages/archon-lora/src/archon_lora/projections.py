"""The projections of a model that adapters can belong to, and their names.

A projection is called by its module, ``layers.0.mlp.up_proj``; that of experts by its stacked weight,
``layers.0.moe.experts.up_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from archon_core.contracts.moe import AdaptableExperts
from archon_core.models.parallel_plan import ParallelPlan, Role
from archon_core.models.weight_map import ResolvedMap
from archon_lora.layers import ATTRIBUTE

ROUTERS = ("router", "gate")
"""Last names of a router, here and in transformers. It is adapted only by name: ``all-linear`` leaves it out."""

EXPERT = "{expert}"
"""The placeholder of numbered experts."""

EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

FACTOR_ROLES: Mapping[Role, tuple[Role, Role]] = {
    "column": ("head_norm", "column"),
    "row": ("row", "head_norm"),
    "replicated": ("replicated", "replicated"),
    "sequence": ("sequence", "sequence"),
    "expert": ("expert", "expert"),
}
"""Role of a projection -> roles of ``A`` and ``B``. Beside a column or row projection, one of the two is replicated
inside the region, so its gradient is summed over the tensor ranks: the role ``head_norm``."""


@dataclass(frozen=True)
class Projection:
    """An adapted projection.

    Attributes:
        name: its name.
        role: its role in the parallel plan.
    """

    name: str
    role: Role

    @property
    def weight(self) -> str:
        return self.name if self.role == "expert" else f"{self.name}.weight"

    @property
    def factors(self) -> tuple[str, str]:
        """Names of the parameters ``A`` and ``B``."""
        if self.role == "expert":
            experts, _, projection = self.name.rpartition(".")
            return f"{experts}.{ATTRIBUTE}.{projection}_A", f"{experts}.{ATTRIBUTE}.{projection}_B"
        return f"{self.name}.{ATTRIBUTE}.down.weight", f"{self.name}.{ATTRIBUTE}.up.weight"

    @property
    def ending(self) -> str:
        return self.name.rpartition(".")[2]

    def stored_as(self, weights: ResolvedMap) -> str | None:
        """The name of the weight in files, of experts a pattern; ``None`` for a part of a larger tensor, to which an
        adapter of PEFT's format belongs as a whole."""
        links = weights.links_of_ours[self.weight]
        if any(len(weights.links_of_hf[link.hf]) != 1 for link in links):
            return None
        if self.role == "expert":
            # A file may also store all experts in one tensor, under the name of the projection.
            return numbered([link.hf for link in links]) if all(link.stacked for link in links) else None
        return links[0].hf if len(links) == 1 else None


def projections_of(parts: Mapping[str, nn.Module], plan: ParallelPlan) -> tuple[list[Projection], bool]:
    """Everything in a module that can be adapted, and whether it has experts that cannot be.

    Args:
        parts: the modules by name.
        plan: the plan of the model.
    """
    found: list[Projection] = []
    has_other_experts = False
    for name, part in parts.items():
        own = dict(part.named_parameters(recurse=False))
        if not own:
            continue
        role = plan.role_of(name)
        if role == "expert":
            if isinstance(part, AdaptableExperts):
                found += [Projection(f"{name}.{ending}", role) for ending in EXPERT_PROJECTIONS]
            else:
                has_other_experts = True
        elif role in FACTOR_ROLES and "weight" in own and own["weight"].ndim == 2:
            found.append(Projection(name, role))
    return found, has_other_experts


def numbered(names: Sequence[str]) -> str | None:
    """The pattern of names that differ in one segment, which counts from 0: ``a.{expert}.b``; ``None`` for others."""
    parts = [name.split(".") for name in names]
    if len({len(segments) for segments in parts}) != 1:
        return None
    counted = [
        place
        for place, segments in enumerate(zip(*parts, strict=True))
        if segments == tuple(str(number) for number in range(len(parts)))
    ]
    # A single expert is number 0, as a first layer may be; its number is the one nearer to the end.
    for place in reversed(counted):
        pattern = [*parts[0][:place], EXPERT, *parts[0][place + 1 :]]
        if all([*segments[:place], EXPERT, *segments[place + 1 :]] == pattern for segments in parts):
            return ".".join(pattern)
    return None
