"""The oracle's rule: how far two records are apart.

Errors are relative to a tensor's own largest magnitude, or to a millionth of the largest of all tensors of its kind at
that step where that is more, since some true gradients are zero. Of stacked matrices, such as experts, each is a tensor
of its own: one that few tokens reach has small gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from archon_testing.cases import DtypeName
from archon_testing.pieces import Piece
from archon_testing.record import Record
from archon_testing.verdicts import QUANTITIES, Comparison, Deviation, Quantity, worst_deviation

FLOOR = 1e-6

STACKED = 3
"""Dims of a stack of matrices."""


def compare(record: Record, reference: Record, dtype: DtypeName) -> Comparison:
    """Hold a rank's ``record`` against the whole ``reference``. What was not recorded is not compared.

    In a pipeline a rank has some parameters only; ``missing_parameters`` tells which it has not.
    """
    reference, pipelined = reference.with_copies(record.copies), record.pipelined
    problems = list(record.problems)
    found: dict[Quantity, list[Deviation]] = {quantity: [] for quantity in QUANTITIES}
    if record.steps and len(record.steps) != len(reference.steps):
        problems.append(f"{len(record.steps)} steps were recorded, the reference has {len(reference.steps)}")
    for step, (own, expected) in enumerate(zip(record.steps, reference.steps, strict=False), start=1):
        norm, expected_norm = ({"global norm": r.gradient_norm} for r in (own, expected))
        found["loss"] += _deviations(_pieces(own.loss), _pieces(expected.loss), step)
        found["gradient norm"] += _deviations(_pieces(norm), _pieces(expected_norm), step)
        found["gradients"] += _deviations(own.gradients, expected.gradients, step, pipelined)
        found["weights"] += _deviations(own.weights, expected.weights, step, pipelined)
    if record.final:
        expected_weights = {f"{name} (gathered)": piece for name, piece in reference.steps[-1].weights.items()}
        gathered = {f"{name} (gathered)": piece for name, piece in record.final.items()}
        found["weights"] += _deviations(gathered, expected_weights, len(record.steps), pipelined)
    if record.initial:
        found["weights"] += _deviations(record.initial, reference.initial, None, pipelined)
    if record.outputs:
        outputs = {
            name: _placed(record, values, reference.outputs.get(name)) for name, values in record.outputs.items()
        }
        found["outputs"] += _deviations(_wholes(outputs), _wholes(reference.outputs), None)
    if not any(found.values()):
        problems.append("nothing was recorded")
    worst = {quantity: worst_deviation(deviations) for quantity, deviations in found.items()}
    return Comparison(dtype, worst, tuple(problems), trained=bool(record.steps))


def missing_parameters(record: Record, reference: Record) -> frozenset[str]:
    """The parameters of a model, copies of tied ones included, that a rank does not have."""
    whole = reference.with_copies(record.copies)
    expected = whole.steps[0].weights if record.steps else whole.initial
    return frozenset(expected) - record.names


def relative_error(found: Piece, expected: Piece, largest: float) -> float:
    """The largest difference between a piece and its place in the whole, relative to the whole's largest magnitude.

    Args:
        found: what a rank holds.
        expected: the whole tensor.
        largest: the largest magnitude in all tensors of this kind; a millionth of it is the least scale.

    Returns:
        Infinity when the shapes differ, or a number of either is not finite.
    """
    if found.shape != expected.shape or tuple(found.values.shape) != found.box.shape:
        return math.inf
    own, whole = found.values.double(), expected.values.double()
    if not (torch.isfinite(own).all() and torch.isfinite(whole).all()):
        return math.inf
    floor = FLOOR * largest
    if whole.ndim != STACKED:
        return _share(magnitude(own - whole[found.box.slices]), max(magnitude(whole), floor))
    rows = found.box.slices[0]
    differences = _largest_of_each(own - whole[found.box.slices])
    return max(map(_share, differences, (max(scale, floor) for scale in _largest_of_each(whole[rows]))), default=0.0)


def _share(difference: float, scale: float) -> float:
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else math.inf


def _largest_of_each(stack: Tensor) -> list[float]:
    """The largest magnitude in every matrix of a stack."""
    return stack.abs().flatten(1).amax(1).tolist() if stack.numel() else [0.0] * stack.shape[0]


def magnitude(tensor: Tensor) -> float:
    """The largest absolute value; 0 for an empty tensor."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _deviations(
    found: Mapping[str, Piece], expected: Mapping[str, Piece], step: int | None, partial: bool = False
) -> Iterator[Deviation]:
    """``partial``: whether ``found`` need not have all that is expected."""
    largest = max((magnitude(piece.values) for piece in expected.values()), default=0.0)
    for name in found if partial else dict.fromkeys((*expected, *found)):
        missing = name not in found or name not in expected
        yield Deviation(math.inf if missing else relative_error(found[name], expected[name], largest), name, step)


def _pieces(numbers: Mapping[str, float]) -> dict[str, Piece]:
    return _wholes({name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()})


def _wholes(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    return {name: Piece.whole(tensor) for name, tensor in tensors.items()}


def _placed(record: Record, values: Tensor, whole: Tensor | None) -> Tensor:
    """The reference's outputs with those of the record in their places."""
    if record.tokens is None or whole is None or values.shape[:1] != record.tokens.shape:
        return values
    placed = whole.clone()
    placed[record.tokens] = values
    return placed
