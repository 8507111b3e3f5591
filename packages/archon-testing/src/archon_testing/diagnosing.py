"""Running a failing case once more, inside the ranks, with more written down: where does its mistake show first?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from archon_testing.cases import Case
from archon_testing.compare import compare
from archon_testing.diagnosis import Diagnosis
from archon_testing.engines import CHECKPOINT, build_engine
from archon_testing.export_findings import look_at_export
from archon_testing.findings import FailingWorld, first_wrong_step
from archon_testing.forward_findings import look_at_forward
from archon_testing.functions import FunctionReference
from archon_testing.module_outputs import record_outputs
from archon_testing.oracle_ranks import CaseRunner, draw_apart, load_record
from archon_testing.pipelines import n_stages_of
from archon_testing.record import measure

OUTPUTS = "outputs-of-step-{}.pt"


def write_outputs(case: Case, folder: Path) -> None:
    """Write every module's outputs on one process into the reference's folder, for as many micro-batches as stages."""
    engine = build_engine(replace(case.reference, n_mbs=n_stages_of(case)), folder / CHECKPOINT)
    try:
        for step in range(1, len(load_record(folder).steps) + 1):
            torch.save(record_outputs(engine, case, step - 1), folder / OUTPUTS.format(step))
    finally:
        engine.close()


def differs_on_one_process(
    case: Case, failed: Collection[str], folder: Path, scratch: Path, before: FunctionReference | None
) -> bool:
    """Whether one process that does what the case does differs from the reference in the same quantities, too.

    Args:
        case: that fails, on any layout.
        failed: the quantities that it fails in; nothing where it has other problems only.
        folder: of the reference.
        scratch: an empty folder.
        before: called first.
    """
    draw_apart()
    if before is not None:
        before.load()()
    # One micro-batch alone is no sum, of which could be seen in which type it was formed.
    fewest = 2 if case.check == "precision" else 1
    alone = replace(case.on_one_process, n_mbs=max(case.n_mbs, fewest))
    record = CaseRunner(scratch, [alone])(alone, folder)
    assert record is not None, "one process leaves nothing out"
    comparison = compare(record, load_record(folder), alone.compute_dtype)
    return bool(set(comparison.failed) & set(failed)) if failed else bool(comparison.problems)


def diagnose(case: Case, folder: Path, scratch: Path, before: FunctionReference | None) -> Diagnosis | None:
    """Look into a case that is known to fail. Collective; ``None`` on ranks that a run on one process does without.

    Args:
        case: of this world's layout.
        folder: of the reference.
        scratch: an empty folder of this world.
        before: called first.
    """
    draw_apart()
    if before is not None:
        before.load()()
    if case.check == "resume":
        return _diagnose_resumed(case, folder, scratch)
    world = FailingWorld.of(case)
    reference = load_record(folder).with_copies(world.copies)
    if case.check == "initial":
        return world.initial_weights(measure(case, folder, scratch / "initial"), reference)
    record = measure(case, folder, scratch / "again")
    diagnosis = world.first_wrong_step(record, reference, list(_outputs(folder, 1)[0]))
    if case.check == "training":
        diagnosis = _without_what_it_adds(world, diagnosis, folder, scratch)
    if diagnosis.n_parameters and record.comparable:
        outputs, passed = _outputs(folder, diagnosis.step)
        diagnosis = look_at_forward(world, folder, outputs, passed, diagnosis)
    return look_at_export(world, record, scratch / "again", diagnosis)


def _without_what_it_adds(world: FailingWorld, diagnosis: Diagnosis, folder: Path, scratch: Path) -> Diagnosis:
    """``diagnosis`` with whether the case agrees with fewer micro-batches, or without activation checkpointing."""
    case, fewest, remarks = world.case, n_stages_of(world.case), list(diagnosis.remarks)
    simpler = {}
    if case.recompute != "none":
        simpler["recompute"] = replace(case, recompute="none", exports=False)
    if case.n_mbs > fewest:
        simpler["single"] = replace(case, n_mbs=fewest, exports=False)
    reference, agree = load_record(folder).with_copies(world.copies), set()
    for what, other in simpler.items():
        if not world.somewhere(first_wrong_step(measure(other, folder, scratch / what), reference, case)):
            agree.add(what)
    if not diagnosis.n_parameters:
        return diagnosis
    if "recompute" in agree:
        remarks.append(
            f"it depends on activation checkpointing: ac_mode {case.recompute} does not agree, and without it all does"
        )
    if "single" in agree:
        remarks.append(f"it depends on the number of micro-batches: {fewest} agrees, {case.n_mbs} does not")
    return replace(diagnosis, recomputed="recompute" in agree, remarks=tuple(remarks))


def _diagnose_resumed(case: Case, folder: Path, scratch: Path) -> Diagnosis | None:
    record = CaseRunner(scratch, [case])(case, folder)
    if record is None:
        return None
    world = FailingWorld.of(case.last)
    reference = load_record(folder).with_copies(world.copies)
    found = world.not_as_saved(record, reference) or world.first_wrong_step(record, reference, [])
    return replace(found, case=case)


def _outputs(folder: Path, step: int) -> tuple:
    """What ``write_outputs`` wrote of a step."""
    # A file of our own, holding more than tensors.
    return torch.load(folder / OUTPUTS.format(step), weights_only=False)
