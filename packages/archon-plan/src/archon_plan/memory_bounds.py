"""Lower bounds of the memory of a layout: the search leaves out what exceeds a device's memory by its bound alone.

The mean over ranks is a bound for the largest rank. It needs no stages, and no lists of a schedule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from archon_core.layout.dims import ParallelDims
from archon_plan.activations import IMBALANCE
from archon_plan.block_sizes import block_sizes
from archon_plan.devices import Device
from archon_plan.mean_elements import MeanElements
from archon_plan.setting import Checkpointing, Setting
from archon_plan.stage_activations import block_kept


class MemoryBounds:
    """Bounds for the layouts of one model.

    Args:
        base: what all settings share, without a pipeline.
        device: of every rank.
        elements: of the model.
    """

    def __init__(self, base: Setting, device: Device, elements: MeanElements) -> None:
        self._base, self._device, self._elements = base, device, elements
        self._counts = Counter(base.anatomy.kind_of)
        self._kept: dict[tuple[object, ...], float] = {}
        self._last: tuple[ParallelDims, tuple[float, float]] | None = None

    def states_fit(self, dims: ParallelDims) -> bool:
        """Whether states may fit without activations."""
        return self._needed(self.states(dims)) <= self._device.memory

    def states(self, dims: ParallelDims) -> float:
        """Bytes that the busiest rank needs at least: sharded states, and in a pipeline whole gradients and weights."""
        base = self._base
        if base.offloads:
            return 0.0
        gradients = base.types.master if base.trains else 0
        if dims.pp == 1 or base.reduces_each or not base.trains:
            return self._elements.sharded(dims) * (self._stored + gradients)
        # Whole gradients are summed over micro-batches while sharded ones do not exist yet.
        whole = self._elements.gathered(dims) * (base.types.reduce + base.types.compute)
        return self._elements.sharded(dims) * self._stored + whole

    def fits(self, dims: ParallelDims, mode: Checkpointing, tokens: int, *, compiles: bool) -> bool:
        """Whether a micro-batch of ``tokens`` tokens may fit.

        At the end of its forward pass a rank has its weights and optimizer states, and keeps what the blocks of all its
        stages keep for backward. Gradients need not exist yet.
        """
        base = self._base
        if not base.trains:
            return True
        states, gathered = self._held(dims)
        needed = self._kept_by(dims, mode, tokens, compiles) / dims.pp + states + gathered
        return self._needed(needed) <= self._device.memory

    def _held(self, dims: ParallelDims) -> tuple[float, float]:
        """Bytes of weights with optimizer states, and of the weights that a pipeline gathers."""
        if self._last is None or self._last[0] is not dims:
            base, states, gathered = self._base, 0.0, 0.0
            if not base.offloads:
                states = self._elements.sharded(dims) * self._stored
                gathered = self._elements.gathered(dims) * base.types.compute if dims.pp > 1 else 0.0
            # The search asks for all modes and micro-batches of a layout in turn.
            self._last = dims, (states, gathered)
        return self._last[1]

    def _needed(self, live: float) -> float:
        """Bytes of a device with so many bytes of tensors (``memory.overhead_parts``), without communicators."""
        return live * (1 + self._device.allocator_share) + self._device.context_bytes

    @property
    def _stored(self) -> int:
        """Bytes of a sharded weight and its optimizer states."""
        base = self._base
        if not base.trains:
            return base.types.master
        states = 2 if base.optimizer in ("adam", "adamw") else int(base.optimizer == "muon" or base.momentum)
        return base.types.master + states * base.state_bytes

    def _kept_by(self, dims: ParallelDims, mode: Checkpointing, tokens: int, compiles: bool) -> float:
        """Bytes that all blocks of the model keep of one micro-batch."""
        local = -(-tokens // (dims.tp * dims.cp))
        # Groups of context ranks lie within a machine, so they also depend on whether all ranks do.
        world = min(dims.world_size, self._base.ranks_per_node or 0)
        key = dims.tp, dims.cp, dims.ep, dims.etp, mode, local, compiles, world
        found = self._kept.get(key)
        if found is None:
            own = replace(self._base.tokens, per_micro_batch=tokens)
            setting = replace(self._base, dims=dims, tokens=own, compiles=compiles)
            on_cpu = self._device.kind == "cpu"
            kinds = setting.anatomy.kinds
            found = self._kept[key] = sum(
                count * block_kept(block_sizes(setting, kinds[kind], IMBALANCE, on_cpu), mode, setting.budget)
                for kind, count in self._counts.items()
            )
        return found
