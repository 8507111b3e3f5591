"""Reruns a failing case on its ranks with additional recording, to find where the error first appears."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from archon_testing.cases import Case
from archon_testing.compare import compare
from archon_testing.diagnosis import Diagnosis
from archon_testing.engines import CHECKPOINT, build_engine
from archon_testing.export_findings import diagnose_export
from archon_testing.failing_world import FailingWorld
from archon_testing.findings import diagnose_initial_weights, diagnose_loading, diagnose_steps, first_wrong_step
from archon_testing.forward_findings import diagnose_forward
from archon_testing.functions import FunctionReference
from archon_testing.measuring import measure
from archon_testing.module_outputs import record_outputs
from archon_testing.oracle_ranks import CaseRunner, diversify_default_generator, load_record
from archon_testing.pipelines import n_stages_of

OUTPUTS = "outputs-of-step-{}.pt"


def write_outputs(case: Case, folder: Path) -> None:
    """Write the outputs of every module on one process to the reference's folder, with one micro-batch per stage.

    Shared prefixes are computed once there, too, since modules see other tokens otherwise.
    """
    alone = replace(case.reference, n_mbs=n_stages_of(case), prefixes=case.prefixes)
    engine = build_engine(alone, folder / CHECKPOINT)
    try:
        for step in range(1, len(load_record(folder).steps) + 1):
            torch.save(record_outputs(engine, case, step - 1), folder / OUTPUTS.format(step))
    finally:
        engine.close()


def differs_on_one_process(
    case: Case, failed: Collection[str], folder: Path, scratch: Path, before: FunctionReference | None
) -> bool:
    """Whether the same run on one process differs from the reference in the same quantities.

    Args:
        case: the failing case, on any layout.
        failed: the quantities that fail; empty if the case has only other problems.
        folder: of the reference.
        scratch: an empty folder.
        before: called first.
    """
    diversify_default_generator()
    if before is not None:
        before.load()()
    # A single micro-batch is no sum, so its rounding says nothing about the dtype of sums.
    fewest = 2 if case.check == "precision" else 1
    alone = replace(case.on_one_process, n_mbs=max(case.n_mbs, fewest))
    record = CaseRunner(scratch, [alone])(alone, folder)
    assert record is not None, "one process leaves nothing out"
    comparison = compare(record, load_record(folder), alone.compute_dtype)
    return bool(set(comparison.failed) & set(failed)) if failed else bool(comparison.problems)


def diagnose(case: Case, folder: Path, scratch: Path, before: FunctionReference | None) -> Diagnosis | None:
    """Diagnose a failing case. Collective; ``None`` on ranks that take no part in a run on one process.

    Args:
        case: a case of this world's layout.
        folder: of the reference.
        scratch: an empty folder of this world.
        before: called first.
    """
    diversify_default_generator()
    if before is not None:
        before.load()()
    if case.check == "resume":
        return _diagnose_resumed(case, folder, scratch)
    world = FailingWorld.of(case)
    reference = load_record(folder).with_copies(world.copies)
    if case.check == "initial":
        return diagnose_initial_weights(world, measure(case, folder, scratch / "initial"), reference)
    record = measure(case, folder, scratch / "again")
    diagnosis = diagnose_steps(world, record, reference, list(_outputs(folder, 1)[0]))
    if case.check == "training":
        diagnosis = _without_what_it_adds(world, diagnosis, folder, scratch)
    if diagnosis.n_parameters and record.comparable:
        outputs, passed = _outputs(folder, diagnosis.step)
        diagnosis = diagnose_forward(world, folder, outputs, passed, diagnosis)
    return diagnose_export(world, record, scratch / "again", diagnosis)


def _without_what_it_adds(world: FailingWorld, diagnosis: Diagnosis, folder: Path, scratch: Path) -> Diagnosis:
    """``diagnosis``, with remarks if the case agrees with fewer micro-batches or without activation checkpointing."""
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
    found = diagnose_loading(world, record, reference) or diagnose_steps(world, record, reference, [])
    return replace(found, case=case)


def _outputs(folder: Path, step: int) -> tuple:
    """The outputs of a step that ``write_outputs`` wrote."""
    # A file of our own, holding more than tensors.
    return torch.load(folder / OUTPUTS.format(step), weights_only=False)
