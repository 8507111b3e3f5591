"""The ranks of a failing case and their joint findings about single tensors. Methods are collective.

Every rank holds only its shards. Ranks exchange what is wrong anywhere and reach the same conclusions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.ranks.ranks import Ranks
from archon_testing.cases import Case
from archon_testing.causes import (
    Coordinates,
    cause_of_copies,
    cause_of_tensor,
)
from archon_testing.compare import is_stack, magnitude, relative_error
from archon_testing.diagnosis import Cause, Finding, shared_place
from archon_testing.held_shards import HeldShard
from archon_testing.measuring import ties_between_stages
from archon_testing.verdicts import LIMITS


@dataclass(frozen=True)
class FailingWorld:
    """The ranks of a failing case.

    Attributes:
        case: the case.
        ranks: of the world.
        coordinates: axis -> coordinate, of every rank.
        expert_coordinates: the same for the axes of expert sharding.
        sizes: of the axes.
        copies: parameters that are copies for a tie between stages -> name of the original.
    """

    case: Case
    ranks: Ranks
    coordinates: Coordinates
    expert_coordinates: Coordinates
    sizes: Mapping[str, int]
    copies: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> FailingWorld:
        layout = parse_layout(case.layout, backends=backend_table(registry().all(TrainEngineSpec)))
        dims = layout.parallel_dims(moe=True)
        grid = dims.dense_grid
        ranks = Ranks.of_process_group()
        return cls(
            case,
            ranks,
            [grid.coordinates(rank) for rank in range(ranks.size)],
            [dims.expert_grid.coordinates(rank) for rank in range(ranks.size)],
            dict(zip(grid.axes, grid.sizes, strict=True)),
            ties_between_stages(case),
        )

    @property
    def limit(self) -> float:
        return LIMITS[self.case.compute_dtype]

    def somewhere(self, value: object) -> bool:
        """Whether ``value`` is true on some rank."""
        return self.ranks.any(bool(value))

    def finding(self, name: str, errors: Sequence[float], limit: float, **fields: Any) -> Finding:
        """A finding that names the ranks whose error exceeds ``limit``, unless all do."""
        wrong = tuple(rank for rank, error in enumerate(errors) if not error <= limit)
        worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
        if not wrong or len(wrong) == len(errors):
            return Finding(name, worst, **fields)
        return Finding(name, worst, ranks=wrong, where=shared_place(wrong, self.coordinates), **fields)

    def tensor(self, name: str, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]) -> Finding:
        """The finding about the wrong tensor ``name``, which some rank has."""
        shard = own.get(name)
        error = 0.0 if shard is None else relative_error(shard, expected[name], largest_magnitude(expected))
        gathered = self.ranks.gather((error, shard))
        shards, right = [shard for _, shard in gathered], expected[name].values
        experts = self._wrong_experts(shard, expected[name], largest_magnitude(expected))
        if experts:
            # Right experts would hide the factor of the wrong ones.
            shards = [None if shard is None else shard.at(experts[0]) for shard in shards]
            right = right[experts[0]][None]
        cause = self._unsummed_copies(name, own, expected) or cause_of_tensor(shards, right, self._coordinates_of(name))
        errors = [error for error, _ in gathered]
        return self.finding(
            name, errors, self.limit, cause=cause, experts=experts, n_experts=len(expected[name].values)
        )

    def _wrong_experts(self, own: HeldShard | None, expected: HeldShard, largest: float) -> tuple[int, ...]:
        """The wrong matrices of a stack; empty if all are wrong, or the tensor is not a stack."""
        n_experts = len(expected.values) if is_stack(expected.values) else 0
        here = set()
        for number in range(n_experts):
            part = None if own is None else own.at(number)
            if part is not None and not relative_error(part, _whole_row(expected, number), largest) <= self.limit:
                here.add(number)
        anywhere = sorted(set().union(*self.ranks.gather(here)))
        return tuple(anywhere) if len(anywhere) < n_experts else ()

    def _coordinates_of(self, name: str) -> Coordinates:
        """Coordinates on the axes over which a parameter is sharded."""
        return self.expert_coordinates if is_expert_parameter(name) else self.coordinates

    def wrong(self, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]) -> list[str]:
        """The tensors that are wrong on some rank, in the order of ``expected``."""
        largest = largest_magnitude(expected)
        here = {
            name
            for name, shard in expected.items()
            if name in own and not relative_error(own[name], shard, largest) <= self.limit
        }
        anywhere = set().union(*self.ranks.gather(here))
        return [name for name in expected if name in anywhere]

    def _unsummed_copies(
        self, name: str, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]
    ) -> Cause | None:
        """The cause if the gradients of a tied weight's copies, on two stages, were not summed; else ``None``."""
        if name not in self.copies and name not in self.copies.values():
            return None
        original = self.copies.get(name, name)
        tied = [original, *(copy for copy, of in self.copies.items() if of == original)]
        everywhere = self.ranks.gather({copy: own[copy] for copy in tied if copy in own})
        shards = [[held[copy] for held in everywhere if copy in held] for copy in tied]
        return cause_of_copies(shards, expected[original].values)


def _whole_row(shard: HeldShard, row: int) -> HeldShard:
    part = shard.at(row)
    assert part is not None, "a whole tensor has all rows"
    return part


def is_expert_parameter(parameter: str) -> bool:
    """Whether a parameter belongs to experts, by the naming rule of ``archon_core.contracts.moe``."""
    return parameter.rpartition(".")[0].endswith(".experts")


def largest_magnitude(shards: Mapping[str, HeldShard]) -> float:
    return max((magnitude(shard.values) for shard in shards.values()), default=0.0)


def relative_difference(found: float, right: float) -> float:
    if not math.isfinite(found):
        return math.inf
    return 0.0 if found == right else abs(found - right) / max(abs(right), 1e-300)
