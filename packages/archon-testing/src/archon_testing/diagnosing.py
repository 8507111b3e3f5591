"""Running a failing case once more, inside the ranks, with more written down: where does its mistake show first?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from archon_testing.cases import Case
from archon_testing.diagnosis import Diagnosis
from archon_testing.engines import CHECKPOINT, build_engine
from archon_testing.findings import FailingWorld, first_wrong_step
from archon_testing.functions import FunctionReference
from archon_testing.module_outputs import record_outputs
from archon_testing.oracle_ranks import draw_apart, load_record
from archon_testing.pipelines import n_stages_of
from archon_testing.record import measure

OUTPUTS = "outputs.pt"


def write_outputs(case: Case, folder: Path) -> None:
    """Write every module's outputs on one process into the reference's folder, for as many micro-batches as stages."""
    engine = build_engine(replace(case.reference, n_mbs=n_stages_of(case)), folder / CHECKPOINT)
    try:
        torch.save(record_outputs(engine, case), folder / OUTPUTS)
    finally:
        engine.close()


def differs_on_one_process(case: Case, folder: Path, scratch: Path, before: FunctionReference | None) -> bool:
    """Whether one process with the case's number of micro-batches differs from the reference, too."""
    draw_apart()
    if before is not None:
        before.load()()
    alone = replace(case.reference, n_mbs=case.n_mbs)
    return bool(first_wrong_step(measure(alone, folder, scratch), load_record(folder), case))


def diagnose(case: Case, folder: Path, scratch: Path, before: FunctionReference | None) -> Diagnosis:
    """Look into a case that is known to fail. Collective.

    Args:
        case: of this world's layout.
        folder: of the reference.
        scratch: an empty folder of this world.
        before: called first.
    """
    draw_apart()
    if before is not None:
        before.load()()
    world = FailingWorld.of(case)
    reference = load_record(folder).with_copies(world.copies)
    if case.check == "initial":
        return world.initial_weights(measure(case, folder, scratch / "initial"), reference)
    record = measure(case, folder, scratch / "again")
    stale = world.stale_weights(record)
    if stale is not None:
        return stale
    outputs, n_tokens = torch.load(folder / OUTPUTS, weights_only=False)
    diagnosis = world.first_wrong_step(record, reference, list(outputs))
    if case.check == "resume":
        return diagnosis
    diagnosis = world.forward(folder, outputs, n_tokens, diagnosis)
    fewest = n_stages_of(case)
    if case.n_mbs > fewest:
        single = measure(replace(case, n_mbs=fewest), folder, scratch / "single")
        if not world.somewhere(first_wrong_step(single, reference, case)):
            remark = f"it depends on the number of micro-batches: {fewest} agrees, {case.n_mbs} does not"
            diagnosis = replace(diagnosis, remarks=(*diagnosis.remarks, remark))
    return diagnosis
