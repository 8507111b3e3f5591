"""The sizes of all parallel axes, and the two views of a pipeline stage's ranks.

Dense parameters live on ``(dp_replicate, dp_shard, cp, tp)``, experts on ``(dp_replicate, edp, ep, etp)``: the same
ranks, folded differently. The second view only requires that ep x etp divides dp_shard x cp x tp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from archon_core.errors import LayoutError
from archon_core.layout.diagnostics import Fault, layout_error
from archon_core.layout.grid import RankGrid
from archon_core.layout.nearest import largest_expert_sizes, smallest_data_size


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of the parallel axes of a training engine.

    Attributes:
        pp: pipeline ranks; each may hold several stages of the model.
        dp_replicate: HSDP replicas of the sharded parameters.
        dp_shard: FSDP's share of data parallelism.
        cp: context parallel.
        tp: tensor parallel.
        ep: expert parallel. Adds no ranks.
        etp: tensor parallel inside each expert. Adds no ranks.

    Raises:
        LayoutError: a size is not a positive integer, or ep x etp does not divide dp_shard x cp x tp.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if type(size) is not int or size < 1:
                raise LayoutError(
                    f"parallel dims: found {name}={size!r}; allowed: integers from 1; "
                    f"fix: {name}=1 switches that axis off"
                )
        if self.sharding_size % (self.ep * self.etp):
            raise self._expert_error()

    # Cached, since a search for layouts reads these millions of times. They are in ``vars()``, but are no fields.
    @cached_property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.stage_size

    @cached_property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp_replicate * self.sharding_size

    @cached_property
    def sharding_size(self) -> int:
        """Ranks of one stage that hold one copy of its parameters: dp_shard x cp x tp, or edp x ep x etp."""
        return self.dp_shard * self.cp * self.tp

    @cached_property
    def edp(self) -> int:
        """Ranks over which FSDP shards one expert's parameters."""
        return self.sharding_size // (self.ep * self.etp)

    @property
    def dense_grid(self) -> RankGrid:
        """All ranks on the axes of dense parameters, pipeline stages outermost."""
        return RankGrid(
            ("pp", "dp_replicate", "dp_shard", "cp", "tp"),
            (self.pp, self.dp_replicate, self.dp_shard, self.cp, self.tp),
        )

    @property
    def expert_grid(self) -> RankGrid:
        """The same ranks on the axes of experts."""
        return RankGrid(
            ("pp", "dp_replicate", "edp", "ep", "etp"),
            (self.pp, self.dp_replicate, self.edp, self.ep, self.etp),
        )

    def describe(self) -> str:
        """The sizes in the format of the start-up log line."""
        names = ["pp", "dp_shard", "tp", "cp", "ep", "etp"]
        if self.dp_replicate > 1:
            names.append("dp_replicate")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _expert_error(self) -> LayoutError:
        group = self.ep * self.etp
        text = self.describe()
        start = text.index("ep=")
        end = text.index("etp=") + len(f"etp={self.etp}")
        more_data = smallest_data_size(self.dp_shard, self.cp * self.tp, group)
        ep, etp = largest_expert_sizes(self.sharding_size, self.ep, self.etp)
        fault = Fault(
            spans=((start, end),),
            found=f"ep x etp = {group} on {self.sharding_size} ranks (dp_shard x cp x tp)",
            allowed="ep x etp divides dp_shard x cp x tp",
        )
        return layout_error(
            text, fault, fix=f"use dp_shard={more_data}, or ep={ep} with etp={etp}", option="parallel dims"
        )
