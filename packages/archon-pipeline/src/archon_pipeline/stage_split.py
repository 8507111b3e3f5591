"""Splits a decoder into pipeline stages and assigns them to ranks.

Stages are contiguous. The split minimises the cost of the most expensive stage, since a pipeline runs at its pace.
Among such splits it takes the most even one, and among those the one with shorter early stages, because early stages
hold the activations of more micro-batches at a time. Imports no torch: dry runs call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal

from archon_core.contracts.pipeline import ScheduleSpec, StageOptions, StagePlan
from archon_core.errors import ConfigError, LayoutError
from archon_core.models.stage import Stage
from archon_pipeline.placement import place_stages


def split_into_stages(
    layer_costs: Sequence[float],
    *,
    embed_cost: float,
    head_cost: float,
    schedule: ScheduleSpec,
    n_ranks: int,
    options: StageOptions,
    role: str,
) -> StagePlan:
    """Split a decoder into stages and place them on ``n_ranks`` pipeline ranks (``contracts.pipeline.StageSplit``).

    The embedding counts as ``pp_first_stage_less_layers`` layers of mean cost if that option is set, else as
    ``embed_cost``; the head likewise by ``pp_last_stage_less_layers`` and ``head_cost``. Every stage has at least one
    layer if there are enough layers.

    Raises:
        LayoutError: there are more stages than layers, embedding and head together.
        ConfigError: the options do not fit the schedule or the model.
    """
    n_layers = len(layer_costs)
    request = _Request(n_layers, schedule, n_ranks, options, role)
    n_stages = request.count_stages()
    request.check_less_layers(n_stages)
    mean = sum(map(Fraction, layer_costs), Fraction(0)) / max(n_layers, 1)
    first, last = options.pp_first_stage_less_layers, options.pp_last_stage_less_layers
    sizes = _balance(
        list(map(Fraction, layer_costs)),
        before=Fraction(embed_cost) if first is None else first * mean,
        after=Fraction(head_cost) if last is None else last * mean,
        bounds=request.bounds(n_stages),
    )
    ends = list(accumulate(sizes))
    stages = tuple(
        Stage(tuple(range(end - size, end)), has_embed=number == 0, has_head=number == n_stages - 1)
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    return StagePlan(stages, place_stages(schedule.placement, n_ranks, n_stages))


@dataclass(frozen=True)
class _Request:
    """The arguments that determine the number of stages and the bounds of their layers."""

    n_layers: int
    schedule: ScheduleSpec
    n_ranks: int
    options: StageOptions
    role: str

    @property
    def less_layers(self) -> tuple[int, int]:
        """By how many layers the first and the last stage are to be shorter; 0 where the option is null."""
        return self.options.pp_first_stage_less_layers or 0, self.options.pp_last_stage_less_layers or 0

    def count_stages(self) -> int:
        """The number of stages. Raises ConfigError, LayoutError."""
        per_stage = self.options.pp_layers_per_stage
        if per_stage is None:
            return self._count_by_schedule()
        n_stages = self._made_by(per_stage)
        if self._fits(n_stages):
            return n_stages
        per_rank = self.schedule.stages_per_rank
        takes = "two or more stages" if per_rank is None else _count(per_rank, "stage")
        allowed = [number for number in range(1, self._counted() + 1) if self._fits(self._made_by(number))]
        fix = f"write {_ranges(allowed)}, or null" if allowed else "no other number works: write null"
        empty = self.n_layers + 2 < n_stages
        raise ConfigError(
            f"{self.role}.archon.pp_layers_per_stage: found {per_stage}, which splits {_count(self.n_layers, 'layer')}"
            f"{self._shown_less_layers()} into {_count(n_stages, 'stage')}{', some of them empty' if empty else ''}; "
            f"{self.schedule.name} needs {takes} on each of {_count(self.n_ranks, 'rank')}; {fix} for "
            f"{_count(self.schedule.usual_stages_per_rank * self.n_ranks, 'stage')}"
        )

    def _count_by_schedule(self) -> int:
        per_rank = self.schedule.usual_stages_per_rank
        n_stages = per_rank * self.n_ranks
        if self._has_no_empty_stage(n_stages):
            return n_stages
        largest = (self.n_layers + 2) // per_rank
        fix = f"use at most p{largest}" if largest > 1 else "leave p out"
        if per_rank > 1:
            fix += ", or a schedule with fewer stages per rank"
        raise LayoutError(
            f"{self.role}.backend: found p{self.n_ranks}, which with {self.schedule.name} makes {n_stages} stages of "
            f"{_count(self.n_layers, 'layer')}; every stage holds a layer, the embedding or the head, so at most "
            f"{self.n_layers + 2} are possible; {fix}"
        )

    def check_less_layers(self, n_stages: int) -> None:
        """Raises ConfigError if the first or last stage would have no layers left."""
        for place in ("first", "last"):
            option = f"pp_{place}_stage_less_layers"
            asked = getattr(self.options, option)
            if not asked or self._leaves_room(n_stages, place, asked):
                continue
            most = next(less for less in range(asked - 1, -1, -1) if self._leaves_room(n_stages, place, less))
            raise ConfigError(
                f"{self.role}.archon.{option}: found {asked}, which leaves the {place} of {n_stages} stages without "
                f"layers ({_count(self.n_layers, 'layer')} in all); allowed is up to {most}, or null; lower it"
            )

    def bounds(self, n_stages: int) -> list[tuple[int, int]]:
        """Fewest and most layers of each stage."""
        enough = self.n_layers >= n_stages
        most = self.options.pp_layers_per_stage or self.n_layers
        bounds = [(1, most)] * n_stages
        for place, less in zip((0, -1), self.less_layers, strict=True):
            least = 1 if enough else 0
            capped = max(most - less, least) if self.options.pp_layers_per_stage else most
            bounds[place] = (least, capped)
        return bounds

    def _leaves_room(self, n_stages: int, place: Literal["first", "last"], less: int) -> bool:
        """Whether a stage of mean length, rounded up, has a layer left after it is shortened by ``less``."""
        first, last = self.less_layers
        counted = self.n_layers + (less + last if place == "first" else first + less)
        least = 1 if self.n_layers >= n_stages else 0
        return less == 0 or less + least <= math.ceil(counted / n_stages)

    def _counted(self) -> int:
        """Layers, plus the layers that embedding and head count as."""
        return self.n_layers + sum(self.less_layers)

    def _made_by(self, per_stage: int) -> int:
        return math.ceil(self._counted() / per_stage)

    def _fits(self, n_stages: int) -> bool:
        per_rank, rest = divmod(n_stages, self.n_ranks)
        allowed = per_rank >= 2 if self.schedule.stages_per_rank is None else per_rank == self.schedule.stages_per_rank
        return allowed and rest == 0 and self._has_no_empty_stage(n_stages)

    def _has_no_empty_stage(self, n_stages: int) -> bool:
        return n_stages <= self.n_layers + 2

    def _shown_less_layers(self) -> str:
        less = sum(self.less_layers)
        return f", and {less} for the shorter first and last stage," if less else ""


def _balance(
    layers: Sequence[Fraction], *, before: Fraction, after: Fraction, bounds: Sequence[tuple[int, int]]
) -> list[int]:
    """The number of layers of each stage.

    Args:
        layers: cost of each.
        before: cost of the first stage besides its layers.
        after: cost of the last stage besides its layers.
        bounds: fewest and most layers of each stage; some sizes within them add up to all layers.
    """
    # Integers in a common unit: exact sums, so that equal costs compare equal, and faster than fractions.
    unit = math.lcm(before.denominator, after.denominator, *(cost.denominator for cost in layers))
    upto = [0, *accumulate(int(cost * unit) for cost in layers)]
    extra = [0] * len(bounds)
    extra[0] += int(before * unit)
    extra[-1] += int(after * unit)

    extra_from = [sum(extra[stage:]) for stage in range(len(extra))]

    def cost(stage: int, start: int, size: int) -> int:
        return upto[start + size] - upto[start] + extra[stage]

    # A stage can begin only where the stages before it and behind it have sizes within their bounds.
    n_layers = len(layers)
    least, most_before = ([0, *accumulate(sizes)] for sizes in zip(*bounds, strict=True))
    starts = [
        range(
            max(least[stage], n_layers - (most_before[-1] - most_before[stage])),
            min(most_before[stage], n_layers - (least[-1] - least[stage])) + 1,
        )
        for stage in range(len(bounds))
    ]

    def cost_from(stage: int, start: int) -> int:
        return upto[-1] - upto[start] + extra_from[stage]

    def even_limit() -> int:
        """The largest cost of a stage if each one takes about its share of what is left."""
        largest = start = 0
        for stage, (fewest, most) in enumerate(bounds):
            ends = starts[stage + 1] if stage + 1 < len(bounds) else range(n_layers, n_layers + 1)
            sizes = range(max(fewest, ends.start - start), min(most, ends.stop - 1 - start) + 1)
            left, stages = cost_from(stage, start), len(bounds) - stage
            size = min(sizes, key=lambda size: abs(stages * cost(stage, start, size) - left))
            largest, start = max(largest, cost(stage, start, size)), start + size
        return largest

    def best(combine: Callable[[int, int], int], limit: int) -> list[list[int | None]]:
        """Dynamic programme: for every stage and first layer, the least combined cost of it and all later stages."""
        table: list[list[int | None]] = [[None] * (n_layers + 1) for _ in range(len(bounds) + 1)]
        table[len(bounds)][n_layers] = 0
        for stage in reversed(range(len(bounds))):
            fewest, most = bounds[stage]
            later = table[stage + 1]
            for start in starts[stage]:
                # Later stages cannot hold more than ``limit`` each.
                if cost_from(stage, start) > limit * (len(bounds) - stage):
                    continue
                found = None
                for size in range(fewest, min(most, n_layers - start) + 1):
                    own, rest = cost(stage, start, size), later[start + size]
                    # More layers cost more, so no larger size can be better either.
                    if own > limit or (found is not None and combine(own, 0) >= found):
                        break
                    if rest is not None:
                        total = combine(own, rest)
                        found = total if found is None else min(found, total)
                table[stage][start] = found
        return table

    limit = best(max, even_limit())[0][0]
    assert limit is not None, f"no sizes within {bounds} add up to {len(layers)} layers"
    squares = best(_add_square, limit)
    sizes: list[int] = []
    start = 0
    for stage, (fewest, _) in enumerate(bounds):
        size = fewest
        while not _is_next(squares[stage][start], cost(stage, start, size), limit, squares[stage + 1][start + size]):
            size += 1
        sizes.append(size)
        start += size
    return sizes


def _add_square(own: int, rest: int) -> int:
    """Sum of squares: among costs with the same sum, it is least for the most even ones."""
    return own * own + rest


def _is_next(total: int | None, own: int, limit: int, rest: int | None) -> bool:
    return rest is not None and own <= limit and _add_square(own, rest) == total


def _ranges(numbers: Sequence[int]) -> str:
    """``2, 4 to 7`` for 2, 4, 5, 6, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
