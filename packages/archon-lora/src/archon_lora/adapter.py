"""The LoRA of one model: which projections it adapts, the roles and names of its parameters, and merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.adapters import CopyBox
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError, did_you_mean
from archon_core.models.box import Box
from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.models.weight_map import Rename, ResolvedMap, Stack, WeightMap
from archon_lora.layers import ATTRIBUTE, attach, switched_off
from archon_lora.options import ALL_LINEAR, LoraOptions
from archon_lora.projections import FACTOR_ROLES, ROUTERS, Projection, projections_of

MEGATRON: Mapping[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron's names of projections, which AReaL's files for its Megatron engine use."""


class LoraAdapter:
    """Implements ``archon_core.contracts.adapters.Adapter``.

    Args:
        config: the section of the model, with ``LoraOptions`` among its fields.
        role: the section's name, for messages.
    """

    def __init__(self, config: Any, *, role: str) -> None:
        self._options: LoraOptions = config
        self._role = role
        self._adapted: dict[str, Projection] = {}
        self._hf_targets: set[str] = set()
        self._left_out: dict[str, str] = {}

    @property
    def source(self) -> str | None:
        """The folder whose adapters training starts from."""
        return self._options.lora_path

    @property
    def _scale(self) -> float:
        return self._options.lora_alpha / self._options.lora_rank

    def attach(self, module: nn.Module, plan: ParallelPlan, weights: ResolvedMap) -> None:
        """Add ``A`` and ``B`` to the targets in ``module``, and freeze all other parameters."""
        module.requires_grad_(False)
        parts = dict(module.named_modules())
        chosen = self._choose(self._found(parts, plan), weights)
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
                    roles[f"{owner}.down"], roles[f"{owner}.up"] = FACTOR_ROLES[role]
        return replace(plan, roles=roles)

    def weight_map(self, weights: ResolvedMap, shapes: Mapping[str, tuple[int, ...]]) -> ResolvedMap:
        """PEFT's names: ``base_model.model.<module>.lora_A.weight`` and ``lora_B``; of experts, one pair for each."""
        rules: list[Rename | Stack] = []
        for projection in self._adapted.values():
            stored = projection.stored_as(weights)
            assert stored is not None, f"attach() leaves out {projection.name}, which files have no name for"
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
        """Projections that stay without adapters, and fused ones that get several."""
        option, decisions = f"{role}.target_modules", []
        for name, reason in self._left_out.items():
            decisions.append(Decision(option, "every projection", f"without {name}", reason))
        for target in self._options.target_modules:
            if len(parts := MEGATRON.get(target, ())) > 1:
                reason = "Megatron fuses these projections; here each has an A"
                decisions.append(Decision(option, target, ", ".join(parts), reason))
        return decisions

    def _found(self, parts: Mapping[str, nn.Module], plan: ParallelPlan) -> list[Projection]:
        found, has_other_experts = projections_of(parts, plan)
        if has_other_experts:
            self._left_out["experts"] = "the package that computes these experts has no adapters for them"
        return found

    def _choose(self, projections: Sequence[Projection], weights: ResolvedMap) -> list[Projection]:
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
        wanted = [p for p in projections if p.ending in asked or (every and p in linear)]
        chosen = [projection for projection in wanted if projection.stored_as(weights) is not None]
        for projection in wanted:
            if projection not in chosen:
                is_refused = projection.ending in asked and all(other.ending != projection.ending for other in chosen)
                self._leave_out(projection, weights, is_refused=is_refused)
        return chosen

    def _leave_out(self, projection: Projection, weights: ResolvedMap, *, is_refused: bool) -> None:
        """Note that a projection has no adapter, because files store it as a part of another tensor.

        Raises:
            ConfigError: ``is_refused``, because the options name it, and no other projection by this name has one.
        """
        whole = weights.links_of_ours[projection.weight][0].hf
        if is_refused:
            raise ConfigError(
                f"{self._role}.target_modules: found {projection.ending!r}, which files store as a part of {whole!r}, "
                "where an adapter belongs to the whole; leave it out"
            )
        name = f"experts' {projection.ending}" if projection.role == "expert" else projection.ending
        self._left_out[name] = f"files store it as a part of {whole.removesuffix('.weight').rpartition('.')[2]}"
