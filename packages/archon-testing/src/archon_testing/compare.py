"""The oracle's rule: how far two records are apart.

Errors are relative to a tensor's own largest magnitude, or to a millionth of the largest of all tensors of its kind at
that step where that is more, since some true gradients are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from archon_testing.cases import DtypeName
from archon_testing.record import Record
from archon_testing.verdicts import QUANTITIES, Comparison, Deviation, Quantity, worst_deviation

FLOOR = 1e-6


def compare(record: Record, reference: Record, dtype: DtypeName) -> Comparison:
    """Hold ``record`` against ``reference``."""
    problems = list(record.problems)
    if len(record.steps) != len(reference.steps):
        problems.append(f"{len(record.steps)} steps were recorded, the reference has {len(reference.steps)}")
    found: dict[Quantity, list[Deviation]] = {quantity: [] for quantity in QUANTITIES}
    for step, (own, expected) in enumerate(zip(record.steps, reference.steps, strict=False), start=1):
        norm, expected_norm = ({"global norm": r.gradient_norm} for r in (own, expected))
        found["loss"] += _deviations(_tensors(own.loss), _tensors(expected.loss), step)
        found["gradient norm"] += _deviations(_tensors(norm), _tensors(expected_norm), step)
        found["gradients"] += _deviations(own.gradients, expected.gradients, step)
        found["weights"] += _deviations(own.weights, expected.weights, step)
    found["outputs"] += _deviations(record.outputs, reference.outputs, None)
    worst = {quantity: worst_deviation(deviations) for quantity, deviations in found.items()}
    return Comparison(dtype, worst, tuple(problems))


def relative_error(found: Tensor, expected: Tensor, largest: float) -> float:
    """The largest difference, relative to the largest magnitude of ``expected``.

    Args:
        found: any shape.
        expected: of the same shape.
        largest: the largest magnitude in all tensors of this kind; a millionth of it is the least scale.

    Returns:
        Infinity when the shapes differ, or a number of either is not finite.
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.double(), expected.double()
    if not (torch.isfinite(found).all() and torch.isfinite(expected).all()):
        return math.inf
    difference = _magnitude(found - expected)
    scale = max(_magnitude(expected), FLOOR * largest)
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else math.inf


def _deviations(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], step: int | None) -> Iterator[Deviation]:
    largest = max(map(_magnitude, expected.values()), default=0.0)
    for name in dict.fromkeys((*expected, *found)):
        missing = name not in found or name not in expected
        yield Deviation(math.inf if missing else relative_error(found[name], expected[name], largest), name, step)


def _tensors(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _magnitude(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
