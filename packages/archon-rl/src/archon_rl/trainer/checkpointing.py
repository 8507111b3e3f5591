"""Checkpoints of a run: the engine's training state, and where the trainer stood.

Weights and optimizer state lie in ``dcp/``, everything else in ``trainer.json``. No generator state is among it:
what is drawn in a step depends on the run's seed and the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archon_core.errors import WeightsError
from archon_core.protocols import TrainEngine
from archon_core.run.context import RunContext
from archon_rl.datasets.cursor import DataCursor
from archon_rl.trainer.sharing import written_together

STATE_FILE = "trainer.json"
ENGINE_FOLDER = "dcp"


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands.

    Attributes:
        step: training steps done.
        version: that of the weights.
        epoch: of the next record.
        position: of the next record in its epoch.
        n_records: training records; a resumed run must have as many for its order to be the same.
        batch_size: records per step; likewise.
        baseline: the first evaluation of the run, before training.
    """

    step: int
    version: int
    epoch: int
    position: int
    n_records: int
    batch_size: int
    baseline: dict[str, float]


def resumed_checkpoint(run: RunContext) -> Path | None:
    """The checkpoint that ``run`` goes on from, or ``None`` when it begins at its beginning.

    The first rank looks: on a shared disk, others may see a folder later than it was written.
    """
    found = run.folder.latest_checkpoint() if run.config.trainer.resume and run.ranks.is_first else None
    return run.ranks.broadcast(found)


def save_checkpoint(
    run: RunContext, engine: TrainEngine, cursor: DataCursor, step: int, baseline: dict[str, float]
) -> None:
    """Write the checkpoint after ``step`` training steps. It appears whole or not at all. All ranks call this."""
    epoch, position = cursor.position(step)
    state = TrainerState(step, engine.version, epoch, position, cursor.n_records, cursor.batch_size, baseline)
    with written_together(run.ranks, run.folder.writing(step)) as checkpoint:
        engine.save(checkpoint / ENGINE_FOLDER, "dcp")
        if run.ranks.is_first:
            (checkpoint / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def load_checkpoint(checkpoint: Path, engine: TrainEngine, cursor: DataCursor) -> TrainerState:
    """Give ``engine`` the checkpoint's weights and optimizer state.

    Raises:
        WeightsError: the checkpoint is damaged, or was written for other data.
    """
    file = checkpoint / STATE_FILE
    try:
        state = TrainerState(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"checkpoint {checkpoint}: {STATE_FILE} cannot be read ({error}); delete this checkpoint to continue from "
            "the one before"
        ) from error
    found, expected = (cursor.n_records, cursor.batch_size), (state.n_records, state.batch_size)
    if found != expected:
        raise WeightsError(
            f"checkpoint {checkpoint}: found {found[0]} training records in batches of {found[1]}, the run began with "
            f"{expected[0]} in batches of {expected[1]}; the same order of records needs the same data and "
            "data.batch_size: restore them, or begin a new run with another trial_name"
        )
    engine.load(checkpoint / ENGINE_FOLDER, "dcp")
    return state


def export_model(run: RunContext, engine: TrainEngine, tokenizer: Any) -> Path:
    """Write model and tokenizer to the run's ``export`` folder, in Hugging Face's form. All ranks call this."""
    with written_together(run.ranks, run.folder.exporting()) as export:
        engine.save(export, "hf")
        if run.ranks.is_first:
            tokenizer.save_pretrained(export)
    return run.folder.export
