"""The LoRA of one model: which projections it adapts, the roles and names of its parameters, and merging.

A projection is called by its module, ``layers.0.mlp.up_proj``; that of experts by its stacked weight,
``layers.0.moe.experts.up_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.adapters import CopyBox
from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import AdaptableExperts
from archon_core.errors import ConfigError, did_you_mean
from archon_core.models.box import Box
from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan, Role
from archon_core.models.weight_map import Rename, ResolvedMap, Stack, WeightMap
from archon_lora.expert_names import numbered
from archon_lora.layers import ATTRIBUTE, attach, switched_off
from archon_lora.options import ALL_LINEAR, LoraOptions

MEGATRON: Mapping[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron's names of projections, which AReaL's files for its Megatron engine use."""

ROUTERS = ("router", "gate")
"""Last names of a router, here and in transformers. It is adapted only by name: ``all-linear`` leaves it out."""

EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

_ROLES: Mapping[Role, tuple[Role, Role]] = {
    "column": ("head_norm", "column"),
    "row": ("row", "head_norm"),
    "replicated": ("replicated", "replicated"),
    "sequence": ("sequence", "sequence"),
    "expert": ("expert", "expert"),
}
"""Role of a projection -> roles of ``A`` and ``B``. Beside a column or row projection, one of the two is replicated
inside the region, so its gradient is summed over the tensor ranks: the role ``head_norm``."""


@dataclass(frozen=True)
class _Projection:
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


class LoraAdapter:
    """Implements ``archon_core.contracts.adapters.Adapter``.

    Args:
        config: the section of the model, with ``LoraOptions`` among its fields.
        role: the section's name, for messages.
    """

    def __init__(self, config: Any, *, role: str) -> None:
        self._options: LoraOptions = config
        self._role = role
        self._adapted: dict[str, _Projection] = {}
        self._hf_targets: set[str] = set()
        self._skips_experts = False

    @property
    def source(self) -> str | None:
        """The folder whose adapters training starts from."""
        return self._options.lora_path

    @property
    def _scale(self) -> float:
        return self._options.lora_alpha / self._options.lora_rank

    def attach(self, module: nn.Module, plan: ParallelPlan) -> None:
        """Add ``A`` and ``B`` to the targets in ``module``, and freeze all other parameters."""
        module.requires_grad_(False)
        parts = dict(module.named_modules())
        chosen = self._choose(self._projections(parts, plan))
        of_experts: dict[str, list[str]] = {}
        for projection in chosen:
            if projection.role == "expert":
                of_experts.setdefault(projection.name.rpartition(".")[0], []).append(projection.ending)
            else:
                attach(parts[projection.name], self._options.lora_rank, self._scale)
            self._adapted[projection.weight] = projection
        for name, projections in of_experts.items():
            parts[name].add_low_rank(projections, self._options.lora_rank, self._scale)

    def extend(self, plan: ParallelPlan) -> ParallelPlan:
        """The plan with one role for each ``A`` and ``B``."""
        roles = dict(plan.roles)
        for pattern, role in plan.roles.items():
            for projection in self._adapted.values():
                if role == "expert" and matches(pattern, projection.name.rpartition(".")[0]):
                    roles[f"{pattern}.{ATTRIBUTE}"] = role
                elif role != "expert" and matches(pattern, projection.name):
                    owner = f"{pattern.rpartition('.')[0]}.{projection.ending}.{ATTRIBUTE}"
                    roles[f"{owner}.down"], roles[f"{owner}.up"] = _ROLES[role]
        return replace(plan, roles=roles)

    def weight_map(self, weights: ResolvedMap, shapes: Mapping[str, tuple[int, ...]]) -> ResolvedMap:
        """PEFT's names: ``base_model.model.<module>.lora_A.weight`` and ``lora_B``; of experts, one pair for each."""
        rules: list[Rename | Stack] = []
        for projection in self._adapted.values():
            links = weights.links_of_ours[projection.weight]
            stored = numbered([link.hf for link in links]) if projection.role == "expert" else links[0].hf
            if stored is None or any(len(weights.links_of_hf[link.hf]) != 1 for link in links):
                raise ConfigError(
                    f"{self._role}.target_modules: found {projection.ending!r}, which files store as a part of "
                    f"{links[0].hf!r}, where an adapter belongs to the whole; leave it out"
                )
            hf = stored.removesuffix(".weight")
            self._hf_targets.add(hf.rpartition(".")[2])
            for end, name in zip(("lora_A", "lora_B"), projection.factors, strict=True):
                in_file = f"base_model.model.{hf}.{end}.weight"
                rules.append(Stack(in_file, name) if projection.role == "expert" else Rename(in_file, name))
        return WeightMap(tuple(rules)).resolve(shapes)

    def switched_off(self, module: nn.Module) -> AbstractContextManager[None]:
        """Leave the products out: the model's own weights alone."""
        return switched_off(module)

    def merged(self, copy: CopyBox) -> CopyBox:
        """``W + scale * B A``, for the boxes of adapted weights."""

        @torch.no_grad()
        def copy_merged(name: str, box: Box, destination: Tensor | None) -> None:
            copy(name, box, destination)
            if name not in self._adapted:
                return
            rank, (*experts, rows, columns) = self._options.lora_rank, box.shape
            *first, row, column = box.start
            down = up = None
            if destination is not None:
                down, up = (destination.new_empty(*experts, *sizes) for sizes in ((rank, columns), (rows, rank)))
            of_a, of_b = self._adapted[name].factors
            copy(of_a, Box((*first, 0, column), (*experts, rank, columns)), down)
            copy(of_b, Box((*first, row, 0), (*experts, rows, rank)), up)
            if destination is not None and down is not None and up is not None:
                # In at least fp32, and rounded once: a small product would vanish beside a weight in bf16.
                wide = torch.promote_types(destination.dtype, torch.float32)
                destination.copy_(destination.to(wide).add_(up.to(wide) @ down.to(wide), alpha=self._scale))

        return copy_merged

    def file_config(self, base: str | None) -> Mapping[str, Any]:
        """The configuration that PEFT reads."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": self._options.lora_rank,
            "lora_alpha": self._options.lora_alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "target_modules": sorted(self._hf_targets),
        }

    def decisions(self, *, role: str) -> Sequence[Decision]:
        """Experts stay without adapters, and fused projections get several."""
        option, decisions = f"{role}.target_modules", []
        if self._skips_experts:
            reason = "the package that computes these experts has no adapters for them"
            decisions.append(Decision(option, "every projection", "without experts", reason))
        for target in self._options.target_modules:
            if len(parts := MEGATRON.get(target, ())) > 1:
                reason = "Megatron fuses these projections; here each has an A"
                decisions.append(Decision(option, target, ", ".join(parts), reason))
        return decisions

    def _projections(self, parts: Mapping[str, nn.Module], plan: ParallelPlan) -> list[_Projection]:
        """Everything in a module that can be adapted."""
        found: list[_Projection] = []
        for name, part in parts.items():
            own = dict(part.named_parameters(recurse=False))
            if not own:
                continue
            role = plan.role_of(name)
            if role == "expert":
                if isinstance(part, AdaptableExperts):
                    found += [_Projection(f"{name}.{ending}", role) for ending in EXPERT_PROJECTIONS]
                else:
                    self._skips_experts = True
            elif role in _ROLES and "weight" in own and own["weight"].ndim == 2:
                found.append(_Projection(name, role))
        return found

    def _choose(self, projections: Sequence[_Projection]) -> list[_Projection]:
        asked = [name for target in self._options.target_modules for name in MEGATRON.get(target, (target,))]
        linear = [projection for projection in projections if projection.role != "sequence"]
        names = {projection.ending for projection in projections}
        if names.intersection(ROUTERS):
            names.update(ROUTERS)
        # The whole model comes before its pipeline stages, which may lack a kind of layer.
        for target in [] if self._adapted else asked:
            if names and target not in names and target != ALL_LINEAR:
                raise ConfigError(
                    f"{self._role}.target_modules: found {target!r}; allowed are {', '.join(sorted(names))} and "
                    f"{ALL_LINEAR}{did_you_mean(target, names)}"
                )
        if set(asked).intersection(ROUTERS):
            asked += ROUTERS
        every = not asked or ALL_LINEAR in asked
        return [p for p in projections if p.ending in asked or (every and p in linear)]
