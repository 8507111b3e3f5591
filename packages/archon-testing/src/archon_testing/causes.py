"""Infers the likely cause of a wrong tensor from the shards of all ranks: which factor, which axis.

Pure functions over the shards of all ranks, so that tests can use hand-written numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from archon_core.models.box import Box
from archon_testing.diagnosis import Cause
from archon_testing.held_shards import HeldShard

CLEAN = 1e-5
"""Largest relative distance at which a value counts as a multiple, sum or mean of others."""

LOOSE = 0.5
"""Largest relative distance from a multiple at which the factor is reported."""

MOST_ROWS = 4096
"""Matrices with more rows are not checked for a permutation of rows."""

Coordinates = Sequence[Mapping[str, int]]
"""Axis -> coordinate, for every rank of the world."""


def cause_of_tensor(shards: Sequence[HeldShard | None], expected: Tensor, coordinates: Coordinates) -> Cause:
    """The cause of a wrong tensor.

    Args:
        shards: the shard of every rank; ``None`` if its pipeline stages do not have the tensor.
        expected: the whole, right tensor.
        coordinates: of every rank.
    """
    held = [rank for rank, shard in enumerate(shards) if shard is not None]
    present = [shard for shard in shards if shard is not None]
    cause = _cause_of_held(present, expected, [coordinates[rank] for rank in held])
    if cause.kind != "unknown":
        return cause
    return cause_of_arrangement(_assembled(present, expected), expected) or cause


def cause_of_arrangement(found: Tensor, expected: Tensor) -> Cause | None:
    """The cause if a tensor has the right elements at other places; else ``None``."""
    found, expected = found.double(), expected.double()
    if found.ndim == 3 and len(found) == len(expected) == 1:
        found, expected = found[0], expected[0]
    if found.numel() != expected.numel() or found.ndim != 2 or expected.ndim != 2 or not torch.isfinite(found).all():
        return None
    if found.shape == expected.shape and _equal(found, expected):
        return None
    if _equal(found.flatten(), expected.T.flatten()):
        return Cause("transposed")
    if found.shape == expected.shape and len(found) <= MOST_ROWS:
        distances = torch.cdist(found, expected, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.argmin(1)
        if len(set(nearest.tolist())) == len(found) and _equal(found, expected[nearest]):
            return Cause("rows exchanged")
    return None


def cause_of_decay(found: Tensor, expected: Tensor, decay: Tensor, *, decayed: bool) -> Cause | None:
    """The cause if a weight differs from the right one by a multiple of one step's weight decay.

    Args:
        found: the weight after the step.
        expected: the right weight.
        decay: learning rate x weight decay x the weight before the step.
        decayed: whether this weight should decay.

    Returns:
        The cause; ``None`` if weight decay does not explain the difference.
    """
    difference, decay = found.double() - expected.double(), decay.double()
    square = float((decay * decay).sum())
    factor = float((difference * decay).sum()) / square if square else 0.0
    if abs(factor) < CLEAN or not torch.isfinite(difference).all():
        return None
    if float((difference - factor * decay).abs().max()) > 1e-3 * abs(factor) * float(decay.abs().max()):
        return None
    if not decayed:
        return Cause("decay unwanted", factor=-factor)
    return Cause("decay missing") if _near(factor, 1.0) else Cause("decay wrong", factor=1.0 - factor)


def cause_of_copies(shards: Sequence[Sequence[HeldShard]], expected: Tensor) -> Cause | None:
    """The cause if the copies of a tied weight, on two stages, only sum to the right value; else ``None``.

    Args:
        shards: for each copy, the shards of all ranks that have it.
        expected: the whole, right tensor.
    """
    copies = [_assembled(of_copy, expected) for of_copy in shards]
    if any(_equal(copy, expected) for copy in copies) or not _equal(torch.stack(copies).sum(0), expected):
        return None
    return Cause("copies not summed", ("pp",))


def _assembled(shards: Sequence[HeldShard], like: Tensor) -> Tensor:
    whole = torch.zeros(like.shape, dtype=torch.float64)
    for shard in shards:
        whole[shard.box.slices] = shard.values.double()
    return whole


def _cause_of_held(shards: Sequence[HeldShard], expected: Tensor, coordinates: Coordinates) -> Cause:
    for axes in _axis_sets(coordinates):
        sums = [_sum_along(axes, rank, shards, coordinates) for rank in range(len(shards))]
        if all(total is None for total in sums):
            continue
        size = math.prod(_size(axis, coordinates) for axis in axes)
        if all(total is None or _equal(total / size, shards[rank].values) for rank, total in enumerate(sums)):
            # Equal on all ranks, so a reduction did happen: the factor is more informative.
            continue
        totals = [(total, expected[shards[rank].box.slices]) for rank, total in enumerate(sums)]
        if all(total is not None and _equal(total, right) for total, right in totals):
            return Cause("missing reduction", axes)
        if all(total is not None and _equal(total / size, right) for total, right in totals):
            return Cause("averaged", axes)
    pairs = [(shard.values.double(), expected[shard.box.slices].double()) for shard in shards]
    return cause_of_factor(pairs, coordinates)


def cause_of_factor(pairs: Iterable[tuple[Tensor, Tensor]], coordinates: Coordinates) -> Cause:
    """The cause by the least-squares ratio of found to right values: a clean factor or unknown."""
    square, product, found_square = 0.0, 0.0, 0.0
    for found, right in pairs:
        square += float((right * right).sum())
        product += float((found * right).sum())
        found_square += float((found * found).sum())
    if not (math.isfinite(found_square) and math.isfinite(square) and square > 0):
        return Cause()
    factor = product / square
    residual = math.sqrt(max(0.0, found_square - factor * factor * square) / square)
    if residual > CLEAN or abs(factor - 1) <= CLEAN or factor <= 0:
        return Cause(factor=factor if residual <= LOOSE else None)
    return _clean_factor(factor, coordinates)


def cause_of_number(found: float, right: float, coordinates: Coordinates) -> Cause:
    """The cause of a wrong scalar. Any scalar is a multiple, so only integers and their inverses count."""
    if not (math.isfinite(found) and right):
        return Cause()
    factor = found / right
    size = max(factor, 1 / factor) if factor > 0 else 0.0
    if round(size) >= 2 and _near(size, round(size)):
        return _clean_factor(factor, coordinates)
    return Cause(factor=factor)


def cause_of_norm(
    norms: Sequence[float],
    right: float,
    gradients: Sequence[Mapping[str, HeldShard]],
    coordinates: Coordinates,
    tied: Collection[str] = (),
    experts: Collection[str] = (),
    expert_coordinates: Coordinates = (),
) -> Cause:
    """The cause of a wrong norm over right gradients.

    Args:
        norms: the norm that every rank reports.
        right: the norm on one process.
        gradients: parameter -> shard, of every rank.
        coordinates: of every rank.
        tied: parameters that are copies of others on another pipeline stage.
        experts: parameters that are sharded over other axes.
        expert_coordinates: of every rank on these.
    """
    every_copy = gradients
    gradients = [{name: held[name] for name in held if name not in tied} for held in every_copy]
    if tied and all(_near(norm, _norm_with_copies((), every_copy, coordinates)) for norm in norms):
        return Cause("copies counted", ("pp",), norms[0] / right)
    if experts:
        others = [{name: held[name] for name in held if name not in experts} for held in gradients]
        of_experts = [{name: held[name] for name in held if name in experts} for held in gradients]
        rest = _norm_with_copies((), others, coordinates)
        if all(_near(norm, rest) for norm in norms):
            return Cause("experts left out", (), norms[0] / right)
        for axes in _axis_sets(expert_coordinates):
            own = [_norm_without(axes, rank, of_experts, expert_coordinates) for rank in range(len(norms))]
            if all(_near(norm, math.hypot(rest, part)) for norm, part in zip(norms, own, strict=True)):
                return Cause("experts left out", axes, norms[0] / right)
    for axes in _axis_sets(coordinates):
        if all(_near(norm, _norm_without(axes, rank, gradients, coordinates)) for rank, norm in enumerate(norms)):
            return Cause("forgotten axis", axes, norms[0] / right)
        if all(_near(norm, _norm_with_copies(axes, gradients, coordinates)) for norm in norms):
            return Cause("copies counted", axes, norms[0] / right)
    return cause_of_number(norms[0], right, coordinates) if len(set(norms)) == 1 else Cause()


def _axis_sets(coordinates: Coordinates) -> Iterator[tuple[str, ...]]:
    """Axes of size above 1, then pairs of them, and so on."""
    axes = [axis for axis in coordinates[0] if _size(axis, coordinates) > 1]
    for n in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, n)


def _size(axis: str, coordinates: Coordinates) -> int:
    return len({own[axis] for own in coordinates})


def _sum_along(axes: Sequence[str], rank: int, shards: Sequence[HeldShard], coordinates: Coordinates) -> Tensor | None:
    """The sum over the ranks that differ from ``rank`` only along ``axes``; ``None`` if their boxes differ."""
    line = [
        shards[other]
        for other, place in enumerate(coordinates)
        if all(place[axis] == coordinates[rank][axis] for axis in place if axis not in axes)
    ]
    if any(shard.box != shards[rank].box for shard in line):
        return None
    return torch.stack([shard.values.double() for shard in line]).sum(0)


def _norm_without(
    axes: Sequence[str], rank: int, gradients: Sequence[Mapping[str, HeldShard]], coordinates: Coordinates
) -> float:
    """The norm over the shards of the ranks with the coordinates of ``rank`` on ``axes``."""
    own = coordinates[rank]
    alike = [r for r, place in enumerate(coordinates) if all(place[axis] == own[axis] for axis in axes)]
    # Other pipeline stages have other parameters.
    parts = {(name, shard.box): _square(shard) for r in alike for name, shard in gradients[r].items()}
    return math.sqrt(sum(parts.values()))


def _norm_with_copies(
    axes: Sequence[str], gradients: Sequence[Mapping[str, HeldShard]], coordinates: Coordinates
) -> float:
    """The norm over all shards, counting replicas along ``axes`` separately."""
    parts: dict[tuple[str, Box, tuple[int, ...]], float] = {
        (name, shard.box, tuple(place[axis] for axis in axes)): _square(shard)
        for of_rank, place in zip(gradients, coordinates, strict=True)
        for name, shard in of_rank.items()
    }
    return math.sqrt(sum(parts.values()))


def _square(shard: HeldShard) -> float:
    return float(shard.values.double().square().sum())


def _clean_factor(factor: float, coordinates: Coordinates) -> Cause:
    """A ``factor`` cause with the axes whose sizes multiply to it, or to its inverse."""
    size = max(factor, 1 / factor)
    found = tuple(
        axes for axes in _axis_sets(coordinates) if _near(size, math.prod(_size(axis, coordinates) for axis in axes))
    )
    return Cause("factor", found[0], factor) if len(found) == 1 else Cause("factor", (), factor, found)


def _equal(found: Tensor, right: Tensor) -> bool:
    scale = float(right.abs().max()) if right.numel() else 0.0
    return not right.numel() or float((found.double() - right.double()).abs().max()) <= CLEAN * scale


def _near(found: float, right: float) -> bool:
    return math.isclose(found, right, rel_tol=CLEAN)
