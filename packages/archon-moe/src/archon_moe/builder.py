"""The ``MoEBuilder`` of archon-moe: builds, shards and maintains the mixture-of-experts blocks of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import ExpertParallel, MoESettings
from archon_core.errors import ModelError
from archon_engine.options.archon import ArchonOptions
from archon_moe.balancing import update_choice_bias
from archon_moe.block import MoEBlock
from archon_moe.dispatch.all_to_all import AllToAllDispatch
from archon_moe.dispatch.interface import Dispatch, NoDispatch
from archon_moe.kernels.choice import choose_implementation
from archon_moe.load import load_metrics
from archon_moe.options import read_options
from archon_moe.sharding import shard_experts, whole_experts


class MoEBlocks:
    """Builds, shards and maintains the blocks of an engine (``archon_core.contracts.moe.MoEBuilder``).

    Args:
        options: the options of the engine (``ArchonOptions``), with the fields of ``archon_moe.options.MoEOptions``
            among them; a missing field has its default.

    Raises:
        ConfigError: an option has an invalid value.
    """

    def __init__(self, options: Any) -> None:
        self.options = read_options(options)
        self._router_dtype = getattr(options, "moe_router_dtype", ArchonOptions.moe_router_dtype)
        self._has_choice_bias = False
        self._sizes: tuple[int, ...] = ()

    def build(self, settings: MoESettings, layer: int) -> MoEBlock:
        """Build the block of a layer, on the current default device.

        Args:
            settings: of the model; the engine's ``moe_router_dtype`` replaces its ``router_dtype``.
            layer: index of the layer in the whole model.

        Raises:
            ModelError: the settings are invalid.
        """
        settings = replace(settings, router_dtype=self._router_dtype)
        check_settings(settings)
        self._has_choice_bias = settings.choice_bias
        self._sizes = (settings.hidden_size, settings.intermediate_size)
        return MoEBlock(settings, layer, self.options)

    def shard(self, block: MoEBlock, place: ExpertParallel) -> None:
        """Make the experts' parameters DTensors over ``place.mesh`` and dispatch tokens over ``place.group``.

        Raises:
            LayoutError: ep does not divide the number of experts, or etp their intermediate size.
        """
        shard_experts(block, place)
        self._sizes = (block.settings.hidden_size, block.settings.intermediate_size // place.etp)
        block.dispatch = self.make_dispatch(place, block.settings)

    def make_dispatch(self, place: ExpertParallel, settings: MoESettings) -> Dispatch:
        """The dispatch of a sharded block. Override it to bring another dispatch (docs/moe.md)."""
        return AllToAllDispatch(place, settings.n_experts) if place.ep * place.etp > 1 else NoDispatch()

    def whole_experts(self, blocks: Sequence[MoEBlock]) -> AbstractContextManager[None]:
        """Gather all experts on every rank for the length of the context. Entering is collective."""
        return whole_experts(blocks)

    def update(self, blocks: Mapping[str, MoEBlock], totals: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Update the choice biases by the expert loads of the step (``archon_moe.balancing.update_choice_bias``)."""
        rate = self.options.moe_bias_update_rate
        for layer, block in blocks.items():
            if rate and block.router.choice_bias is not None:
                update_choice_bias(block.router.choice_bias, totals[layer]["counts"], rate)

    def metrics(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, float]:
        """The metrics of a step (``archon_moe.load.load_metrics``)."""
        return load_metrics(totals)

    def expert_load(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Sequence[int]]:
        """Layer -> tokens of each expert in a step, layers in order."""
        return {layer: totals[layer]["counts"].long().tolist() for layer in sorted(totals, key=int)}

    def decisions(self, device: str, dtype: torch.dtype, *, role: str) -> list[Decision]:
        """Report the chosen implementation of the experts, and options that do something else than they say.

        Raises:
            ConfigError: the requested implementation is not available on ``device`` in ``dtype``.
        """
        chosen = choose_implementation(device, dtype, self.options.moe_grouped_gemm, self._sizes)
        decisions = []
        if self.options.moe_grouped_gemm is None:
            used = "true" if chosen.name == "grouped_mm" else "false"
            decisions.append(Decision(f"{role}.archon.moe_grouped_gemm", "default", used, chosen.reason))
        if self.options.moe_aux_loss == "global_batch" and self.options.moe_aux_loss_coef:
            reason = (
                "loads are counted per micro-batch over all ranks, so the loss depends on the number of micro-batches"
            )
            decisions.append(
                Decision(f"{role}.archon.moe_aux_loss", "global_batch", "global_batch, per micro-batch", reason)
            )
        if self.options.moe_bias_update_rate and not self._has_choice_bias:
            rate = str(self.options.moe_bias_update_rate)
            reason = "the model's routers have no choice bias"
            decisions.append(Decision(f"{role}.archon.moe_bias_update_rate", rate, "0", reason))
        return decisions


def check_settings(settings: MoESettings) -> None:
    """Check the sizes of a block.

    Raises:
        ModelError: the settings are invalid; the message lists every problem.
    """
    s = settings
    problems = [
        f"{name}: found {getattr(s, name)}; allowed are numbers from 1"
        for name in ("hidden_size", "intermediate_size", "n_experts", "top_k", "n_groups", "top_k_groups")
        if getattr(s, name) < 1
    ]
    if not problems:
        if s.n_experts % s.n_groups:
            problems.append(f"n_groups: found {s.n_groups}, which does not divide the {s.n_experts} experts")
        elif s.top_k_groups > s.n_groups:
            problems.append(f"top_k_groups: found {s.top_k_groups}; there are {s.n_groups} groups")
        else:
            eligible = s.n_experts // s.n_groups * s.top_k_groups
            if s.top_k > eligible:
                among = "" if s.n_groups == 1 else f" of the {s.top_k_groups} groups that a token may choose from"
                problems.append(f"top_k: found {s.top_k}; allowed are 1 to the {eligible} experts{among}")
    if s.shared_intermediate_size < 0:
        problems.append(
            f"shared_intermediate_size: found {s.shared_intermediate_size}; allowed are numbers from 0 (no shared "
            "expert)"
        )
    elif s.shared_gate and not s.shared_intermediate_size:
        problems.append("shared_gate: found true without a shared expert; give it a shared_intermediate_size")
    if problems:
        raise ModelError("mixture of experts: invalid settings:\n  " + "\n  ".join(problems))
