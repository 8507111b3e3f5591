"""Compares the record of a rank with the reference.

Errors are relative to the largest magnitude of the tensor, but at least to a millionth of the largest magnitude of all
tensors of its kind at that step, since some true gradients are zero. Each matrix of a stack, such as an expert, counts
as a separate tensor: an expert with few tokens has small gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from archon_testing.cases import BFLOAT16
from archon_testing.held_shards import HeldShard
from archon_testing.record import Record
from archon_testing.verdicts import LIMITS, QUANTITIES, Comparison, Deviation, Quantity, worst_deviation

FLOOR = 1e-6

MOST_NAMES = 3
"""Number of names to list in a problem; the rest is only counted."""


def compare(record: Record, reference: Record, dtype: str) -> Comparison:
    """Compare a rank's ``record`` with the whole ``reference``; skips what was not recorded.

    A pipeline rank has only some of the parameters; see ``missing_parameters``.
    """
    reference, pipelined = reference.with_copies(record.copies), record.pipelined
    problems = list(record.problems)
    found: dict[Quantity, list[Deviation]] = {quantity: [] for quantity in QUANTITIES}
    n_steps = 1 if record.loaded or dtype == BFLOAT16 else len(reference.steps)
    if record.steps and len(record.steps) != n_steps:
        problems.append(f"{len(record.steps)} steps were recorded, the reference has {n_steps}")
    for step, own, expected in record.paired_steps(reference) if record.comparable else ():
        norm, expected_norm = ({"global norm": r.gradient_norm} for r in (own, expected))
        found["loss"] += _deviations(_pieces(own.loss), _pieces(expected.loss), step)
        found["gradient norm"] += _deviations(_pieces(norm), _pieces(expected_norm), step)
        found["gradients"] += _deviations(own.gradients, expected.gradients, step, pipelined)
        if dtype != BFLOAT16:  # whose gradients are not clipped
            found["weights"] += _deviations(own.weights, expected.weights, step, pipelined)
        found["optimizer state"] += _state_deviations(own.state, expected.state, step, pipelined)
    if record.loaded:
        problems += _not_as_saved(record, reference, dtype)
    found["export"] += (Deviation(error, name) for name, error in record.exported.items())
    if record.initial:
        found["weights"] += _deviations(record.initial, reference.initial, None, pipelined)
    if record.outputs:
        outputs = {
            name: _placed(record, values, reference.outputs.get(name)) for name, values in record.outputs.items()
        }
        found["outputs"] += _deviations(_wholes(outputs), _wholes(reference.outputs), None)
    if record.comparable and not any(found.values()):
        problems.append("nothing was recorded")
    worst = {quantity: worst_deviation(deviations) for quantity, deviations in found.items()}
    return Comparison(dtype, worst, tuple(problems), trained=bool(record.steps))


def missing_parameters(record: Record, reference: Record) -> frozenset[str]:
    """The parameters of a model, including copies of tied ones, that a rank does not have."""
    whole = reference.with_copies(record.copies)
    expected = whole.steps[0].weights if record.steps else whole.initial
    return frozenset(expected) - record.names


def relative_error(found: HeldShard, expected: HeldShard, largest: float) -> float:
    """The largest difference between a shard and the same part of the whole, relative to the whole's largest magnitude.

    Args:
        found: a rank's shard.
        expected: the whole tensor.
        largest: the largest magnitude of all tensors of this kind; a millionth of it is the least scale.

    Returns:
        The error; infinity if shapes differ or a value is not finite.
    """
    if found.shape != expected.shape or tuple(found.values.shape) != found.box.shape:
        return math.inf
    own, whole = found.values.double(), expected.values.double()
    floor = FLOOR * largest
    if not is_stack(whole):
        return _share(magnitude(own - whole[found.box.slices]), max(expected.largest, floor))
    rows = found.box.slices[0]
    differences = _largest_of_each(own - whole[found.box.slices])
    return max(map(_share, differences, (max(scale, floor) for scale in _largest_of_each(whole[rows]))), default=0.0)


def is_stack(tensor: Tensor) -> bool:
    """Whether a parameter is a stack of matrices. Filters of a convolution, [features, 1, length], are one matrix."""
    return tensor.ndim == 3 and tensor.shape[1] > 1


def _share(difference: float, scale: float) -> float:
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return math.inf
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
    found: Mapping[str, HeldShard], expected: Mapping[str, HeldShard], step: int | None, partial: bool = False
) -> Iterator[Deviation]:
    """``partial``: whether ``found`` need not have all that is expected."""
    largest = max((shard.largest for shard in expected.values()), default=0.0)
    for name in found if partial else dict.fromkeys((*expected, *found)):
        missing = name not in found or name not in expected
        yield Deviation(math.inf if missing else relative_error(found[name], expected[name], largest), name, step)


def _state_deviations(
    found: Mapping[str, HeldShard], expected: Mapping[str, HeldShard], step: int | None, partial: bool
) -> Iterator[Deviation]:
    """Deviations of the optimizer's state, if recorded, with a separate scale for first and second moments."""
    if not found:
        return
    for entry in dict.fromkeys(name.rpartition(" ")[2] for name in expected):
        own, right = (
            {name: shard for name, shard in shards.items() if name.endswith(f" {entry}")}
            for shards in (found, expected)
        )
        yield from _deviations(own, right, step, partial)


def _not_as_saved(record: Record, reference: Record, dtype: str) -> Iterator[str]:
    """Tensors that differ after loading from those of one process at the same step."""
    saved, limit = reference.steps[record.first_step - 2], LIMITS[dtype]
    weights = _deviations(record.loaded, saved.weights, None, record.pipelined)
    state = _state_deviations(record.loaded_state, saved.state, None, record.pipelined)
    for what, deviations in (("", weights), ("the optimizer's ", state)):
        wrong = [deviation.name for deviation in deviations if not deviation.error <= limit]
        if wrong:
            names, more = ", ".join(wrong[:MOST_NAMES]), len(wrong) - MOST_NAMES
            listed = f"{names} and {more} more are" if more > 0 else f"{names} {'are' if len(wrong) > 1 else 'is'}"
            yield f"after loading, {what}{listed} not what was saved"


def _pieces(numbers: Mapping[str, float]) -> dict[str, HeldShard]:
    return _wholes({name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()})


def _wholes(tensors: Mapping[str, Tensor]) -> dict[str, HeldShard]:
    return {name: HeldShard.whole(tensor) for name, tensor in tensors.items()}


def _placed(record: Record, values: Tensor, whole: Tensor | None) -> Tensor:
    """The reference's outputs, with the record's values at the positions of its tokens."""
    if record.tokens is None or whole is None or values.shape[:1] != record.tokens.shape:
        return values
    placed = whole.clone()
    placed[record.tokens] = values
    return placed
