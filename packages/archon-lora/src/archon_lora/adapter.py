"""The LoRA of one model: which projections it adapts, the roles and names of its parameters, and merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.adapters import CopyBox
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError, did_you_mean
from archon_core.models.box import Box
from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan, Role
from archon_core.models.weight_map import Rename, ResolvedMap, WeightMap
from archon_lora.layers import ATTRIBUTE, attach
from archon_lora.options import ALL_LINEAR, LoraOptions

MEGATRON: Mapping[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron's names of projections, which AReaL's files for its Megatron engine use."""

DOWN, UP = f"{ATTRIBUTE}.down.weight", f"{ATTRIBUTE}.up.weight"

_ROLES: Mapping[str, tuple[Role, Role]] = {"column": ("head_norm", "column"), "row": ("row", "head_norm")}
"""Role of a projection -> roles of ``A`` and ``B``. One of the two is replicated inside the region, so its gradient is
summed over the tensor ranks: the role ``head_norm``."""


class LoraAdapter:
    """Implements ``archon_core.contracts.adapters.Adapter``.

    Args:
        config: the section of the model, with ``LoraOptions`` among its fields.
        role: the section's name, for messages.
    """

    def __init__(self, config: Any, *, role: str) -> None:
        self._options: LoraOptions = config
        self._role = role
        self._adapted: dict[str, Role] = {}
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
        projections = {
            name: (part, role)
            for name, part in module.named_modules()
            if (role := _role_of(name, part, plan)) in _ROLES
        }
        chosen = self._choose(projections)
        for name in chosen:
            part, role = projections[name]
            attach(part, self._options.lora_rank, self._scale)
            self._adapted[name] = role
        self._skips_experts |= any(role == "expert" for role in plan.roles.values())

    def extend(self, plan: ParallelPlan) -> ParallelPlan:
        """The plan with one role for each ``A`` and ``B``."""
        roles = dict(plan.roles)
        for pattern, role in plan.roles.items():
            names = [name for name in self._adapted if matches(pattern, name)]
            for ending in dict.fromkeys(name.rpartition(".")[2] for name in names):
                owner = f"{pattern.rpartition('.')[0]}.{ending}.{ATTRIBUTE}"
                roles[f"{owner}.down"], roles[f"{owner}.up"] = _ROLES[role]
        return replace(plan, roles=roles)

    def weight_map(self, weights: ResolvedMap, shapes: Mapping[str, tuple[int, ...]]) -> ResolvedMap:
        """PEFT's names: ``base_model.model.<module>.lora_A.weight`` and ``lora_B``."""
        rules: list[Rename] = []
        for name in self._adapted:
            links = weights.links_of_ours[f"{name}.weight"]
            if len(links) != 1 or len(weights.links_of_hf[links[0].hf]) != 1:
                raise ConfigError(
                    f"{self._role}.target_modules: found {name.rpartition('.')[2]!r}, which files store as a part of "
                    f"{links[0].hf!r}, where an adapter belongs to the whole; leave it out"
                )
            hf = links[0].hf.removesuffix(".weight")
            self._hf_targets.add(hf.rpartition(".")[2])
            prefix = f"base_model.model.{hf}"
            rules.append(Rename(f"{prefix}.lora_A.weight", f"{name}.{DOWN}"))
            rules.append(Rename(f"{prefix}.lora_B.weight", f"{name}.{UP}"))
        return WeightMap(tuple(rules)).resolve(shapes)

    def merged(self, copy: CopyBox) -> CopyBox:
        """``W + scale * B A``, for the boxes of adapted weights."""

        @torch.no_grad()
        def copy_merged(name: str, box: Box, destination: Tensor | None) -> None:
            copy(name, box, destination)
            owner = name.removesuffix(".weight")
            if owner not in self._adapted:
                return
            rank, (rows, columns) = self._options.lora_rank, box.shape
            down = up = None
            if destination is not None:
                down, up = destination.new_empty(rank, columns), destination.new_empty(rows, rank)
            copy(f"{owner}.{DOWN}", Box((0, box.start[1]), (rank, columns)), down)
            copy(f"{owner}.{UP}", Box((box.start[0], 0), (rows, rank)), up)
            if destination is not None and down is not None and up is not None:
                # In at least fp32, and rounded once: a small product would vanish beside a weight in bf16.
                wide = torch.promote_types(destination.dtype, torch.float32)
                destination.copy_(destination.to(wide).addmm(up.to(wide), down.to(wide), alpha=self._scale))

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
            reason = "adapters of stacked expert weights are not part of this version"
            decisions.append(Decision(option, "every projection", "without experts", reason))
        for target in self._options.target_modules:
            if len(parts := MEGATRON.get(target, ())) > 1:
                reason = "Megatron fuses these projections; here each has an A"
                decisions.append(Decision(option, target, ", ".join(parts), reason))
        return decisions

    def _choose(self, projections: Mapping[str, Any]) -> list[str]:
        asked = [name for target in self._options.target_modules for name in MEGATRON.get(target, (target,))]
        if not asked or ALL_LINEAR in asked:
            return list(projections)
        endings = {name.rpartition(".")[2] for name in projections}
        for target in asked:
            if endings and target not in endings:
                raise ConfigError(
                    f"{self._role}.target_modules: found {target!r}; allowed are {', '.join(sorted(endings))} and "
                    f"{ALL_LINEAR}{did_you_mean(target, endings)}"
                )
        return [name for name in projections if name.rpartition(".")[2] in asked]


def _role_of(name: str, part: nn.Module, plan: ParallelPlan) -> Role | None:
    """The role of a module that owns a matrix; ``None`` for any other module."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        return None
    return plan.role_of(name)
