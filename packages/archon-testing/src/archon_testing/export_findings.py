"""Diagnoses an export: the first wrong tensor, on which ranks, and how it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from archon_testing.causes import cause_of_arrangement, cause_of_factor
from archon_testing.compare import magnitude
from archon_testing.diagnosis import Cause, Diagnosis
from archon_testing.exports import expected_export, parameters_in, read_files, weight_map_of
from archon_testing.failing_world import FailingWorld
from archon_testing.record import Record


def diagnose_export(world: FailingWorld, record: Record, files: Path, diagnosis: Diagnosis) -> Diagnosis:
    """``diagnosis`` with the first exported tensor that differs from the ranks' weights.

    Args:
        world: the ranks.
        record: of the case that exported.
        files: the export folder.
        diagnosis: of everything else.
    """
    limit = world.limit
    errors = world.ranks.gather(dict(record.exported))
    wrong = sorted({name for of_rank in errors for name, error in of_rank.items() if not error <= limit})
    if not wrong:
        return diagnosis
    weights = weight_map_of(world.case)
    name = next(name for name in weights.hf_shapes if name in wrong)
    ours = parameters_in(name, weights)
    after, before = (
        expected_export(name, world.ranks.gather({n: p for n, p in shards.items() if n in ours}), weights)
        for shards in (record.steps[-1].weights, record.start)
    )
    found = read_files(files)[name].double()
    if magnitude(found - before) <= limit * magnitude(before):
        cause = Cause("stale")
    else:
        cause = cause_of_arrangement(found, after) or cause_of_factor([(found, after)], world.coordinates)
    at = world.finding(name, [of_rank.get(name, 0.0) for of_rank in errors], limit, cause=cause)
    remark = (
        f"{len(wrong)} of {len(weights.hf_shapes)} exported tensors are not the weights that the ranks hold: "
        "look at how they are gathered, and at the weight map"
    )
    return replace(diagnosis, export=at, remarks=(*diagnosis.remarks, remark))
