"""Mixture-of-experts blocks in a training step.

Before the step, micro-batches get the totals that divide balancing losses. After it, the reports of the blocks are
summed over all ranks, for metrics and for balancing by bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.moe import MoEBuilder
from archon_core.contracts.packed import Auxiliary
from archon_engine.mesh import Meshes
from archon_engine.step.consistency import Share

PREFIX = "moe/"
"""Prefix of the blocks' metrics."""

Totals = dict[str, dict[str, Tensor]]
"""Layer -> name -> sum over all tokens of a step."""


class StepReports:
    """The reports of layers on each micro-batch of one step.

    A second report replaces the first: activation checkpointing runs a block's forward pass twice.
    """

    def __init__(self) -> None:
        self._reports: dict[tuple[str, int], Mapping[str, Tensor]] = {}

    def add(self, micro_batch: int, layer: str, values: Mapping[str, Tensor]) -> None:
        """Add a layer's report on one micro-batch: name -> sum over its tokens."""
        self._reports[layer, micro_batch] = {name: value.detach() for name, value in values.items()}

    def totals_here(self) -> Totals:
        """Sums over this rank's micro-batches, in float64."""
        totals: Totals = {}
        for (layer, _), values in sorted(self._reports.items()):
            of_layer = totals.setdefault(layer, {})
            for name, value in values.items():
                value = value.to(torch.float64)
                of_layer[name] = of_layer[name] + value if name in of_layer else value
        return totals


@dataclass(frozen=True)
class ExpertBlocks:
    """The mixture-of-experts blocks that this process holds.

    Attributes:
        builder: built the blocks; updates them and computes their metrics.
        blocks: layer index as text -> block, for the layers of this process.
        meshes: the meshes over which they are sharded; ``None`` for an unsharded module.
    """

    builder: MoEBuilder
    blocks: Mapping[str, nn.Module]
    meshes: Meshes | None = None

    @property
    def holders(self) -> dist.ProcessGroup | None:
        """The processes with the same layers and other tokens; ``None`` if there is only this one."""
        if self.meshes is None:
            return None
        return self.meshes.holders or (dist.group.WORLD if self.meshes.dims.world_size > 1 else None)

    @property
    def pipeline(self) -> dist.ProcessGroup | None:
        """The processes with other layers; ``None`` without a pipeline."""
        return None if self.meshes is None else self.meshes.pipeline

    def with_batch_totals(
        self, micro_batches: Sequence[MicroBatch], whole: Share
    ) -> tuple[list[MicroBatch], StepReports]:
        """Add the totals of the whole batch, which divide the blocks' losses, to micro-batches. Returns the
        micro-batches and the object that collects the blocks' reports."""
        reports = StepReports()
        carrying = []
        for number, micro_batch in enumerate(micro_batches):
            auxiliary = Auxiliary(
                n_tokens=whole.n_tokens,
                n_sequences=whole.n_sequences,
                report=partial(reports.add, number),
                group=self.holders,
            )
            carrying.append(replace(micro_batch, packed=replace(micro_batch.packed, auxiliary=auxiliary)))
        return carrying, reports

    def finish(self, reports: StepReports, *, stepped: bool) -> tuple[dict[str, float], Mapping[str, Sequence[int]]]:
        """If the optimizer has stepped, update state that gradients do not train. Collective.

        Returns:
            metrics, and per layer the tokens of each expert.
        """
        totals = self._over_all_ranks(reports.totals_here())
        if stepped:
            self.builder.update(self.blocks, totals)
        metrics = {PREFIX + name: float(value) for name, value in self.builder.metrics(totals).items()}
        # Builders of other packages may be older than this method.
        load = getattr(self.builder, "expert_load", None)
        return metrics, {} if load is None else load(totals)

    def _over_all_ranks(self, here: Totals) -> Totals:
        names = [(layer, name) for layer in sorted(here) for name in sorted(here[layer])]
        if self.holders is not None and names:
            parts = [here[layer][name] for layer, name in names]
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat, group=self.holders)
            sums = flat.split([part.numel() for part in parts])
            for (layer, name), part, total in zip(names, parts, sums, strict=True):
                here[layer][name] = total.view(part.shape)
        if self.pipeline is None:
            return here
        every: list[Totals] = [{} for _ in range(self.pipeline.size())]
        dist.all_gather_object(every, {layer: _on_host(values) for layer, values in here.items()}, group=self.pipeline)
        return {layer: values for totals in every for layer, values in totals.items()} | here


def _on_host(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}
