"""Checkpoints of a run: the engine's training state, and where the trainer stood.

Weights and optimizer state lie in ``dcp/``, everything else in ``trainer.json``. No generator state is among it:
what is drawn in a step depends on the run's seed and the step.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngine
from archon_core.errors import DamagedError, WeightsError
from archon_core.models.end_tokens import GENERATION_CONFIG, EndTokens
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.end_tokens_file import write_ends
from archon_engine.checkpoint.seal import (
    check_file,
    read_seal,
    seal_whole,
    write_seal,
)
from archon_engine.models.tokenizer import save_tokenizer
from archon_rl.datasets.cursor import DataCursor
from archon_rl.trainer.fingerprint import Fingerprint
from archon_rl.trainer.sharing import written_together
from archon_train.run.context import RunContext

STATE_FILE = "trainer.json"
ENGINE_FOLDER = "dcp"
TOKENIZER_FOLDER = "tokenizer"
"""In the run folder: the run's own copy of its tokenizer, and the tokens that end its completions."""


NONE: Mapping[str, Fingerprint] = MappingProxyType({})


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands.

    Attributes:
        step: training steps done.
        version: that of the weights.
        epoch: of the next record.
        position: of the next record in its epoch.
        n_records: training records, which the order of records depends on.
        batch_size: records per step; a resumed run must have as many for its order to be the same.
        baseline: the first evaluation of the run, before training.
        fingerprints: name -> ``fingerprint.Fingerprint`` as a dict, of what the run learns from; ``None`` in states of
            earlier versions.
    """

    step: int
    version: int
    epoch: int
    position: int
    n_records: int
    batch_size: int
    baseline: dict[str, float]
    fingerprints: dict[str, dict[str, str]] | None = None


def resumed_checkpoint(run: RunContext) -> Path | None:
    """The checkpoint that ``run`` goes on from, or ``None`` when it begins at its beginning.

    The first rank looks: on a shared disk, others may see a folder later than it was written.
    """
    found = run.folder.latest_checkpoint() if run.config.trainer.resume and run.ranks.is_first else None
    return run.ranks.broadcast(found)


class Checkpoints:
    """Writes a run's checkpoints, in turn with training or beside it, and removes those that are not kept.

    All ranks call the same methods in the same order.

    Args:
        run: the run; ``trainer.async_save``, ``keep_last`` and ``keep_every`` say how.
        engine: the model in training.
        cursor: where its data stand.
        fingerprints: what it learns from.
    """

    def __init__(
        self, run: RunContext, engine: TrainEngine, cursor: DataCursor, fingerprints: Mapping[str, Fingerprint] = NONE
    ) -> None:
        self._run = run
        self._engine = engine
        self._cursor = cursor
        self._fingerprints = {name: asdict(found) for name, found in fingerprints.items()}
        self._pending: Future[None] | None = None
        self._apart: Ranks | None = None

    def save(self, step: int, baseline: dict[str, float]) -> None:
        """Write the checkpoint after ``step`` training steps, or begin to. It appears whole or not at all.

        Raises:
            WeightsError: this one, or the one before, could not be written.
        """
        self.finish()
        epoch, position = self._cursor.position(step)
        n_records, batch_size = self._cursor.n_records, self._cursor.batch_size
        place = (epoch, position, n_records, batch_size)
        state = TrainerState(step, self._engine.version, *place, baseline, self._fingerprints)
        if not self._run.config.trainer.async_save:
            ranks = self._run.ranks
            self._write(state, lambda folder: self._engine.save(folder, "dcp"), ranks)
            return
        if self._apart is None:
            self._apart = self._run.ranks.apart()
        ranks, staged = self._apart, self._engine.stage()
        self._pending = _in_background(lambda: self._write(state, lambda folder: staged.write(folder, ranks), ranks))

    def look(self) -> None:
        """Between steps: notice that the write in the background has ended, on all ranks at once.

        Raises:
            WeightsError: it could not be written.
        """
        # Some ranks may see its end before others do; all must raise at the same place.
        if self._pending is not None and all(self._run.ranks.gather(self._pending.done())):
            self.finish()

    def finish(self) -> None:
        """Wait for the write in the background, if there is one.

        Raises:
            WeightsError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def leave(self) -> None:
        """After an error: let a single process end its write; with others, which may be gone, leave it."""
        if self._pending is not None and self._run.ranks.size == 1:
            wait([self._pending])

    def _write(self, state: TrainerState, write_engine: Callable[[Path], None], ranks: Ranks) -> None:
        folder, trainer = self._run.folder, self._run.config.trainer
        with written_together(ranks, folder.writing(state.step)) as checkpoint:
            write_engine(checkpoint / ENGINE_FOLDER)
            with failing_together(ranks):
                if ranks.is_first:
                    (checkpoint / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
                    write_seal(checkpoint, {STATE_FILE: seal_whole(checkpoint / STATE_FILE)})
        with failing_together(ranks):
            if ranks.is_first:
                folder.remove_superseded(keep_last=trainer.keep_last, keep_every=trainer.keep_every)


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run ``work`` in a thread that does not keep the process alive: a second Ctrl-C ends it at once."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="archon-checkpoint", daemon=True).start()
    return future


def load_checkpoint(run: RunContext, checkpoint: Path, engine: TrainEngine, cursor: DataCursor) -> TrainerState:
    """Give ``engine`` the checkpoint's weights and optimizer state. All ranks call this.

    Raises:
        WeightsError: on every rank, the checkpoint is damaged, or was written for other batches.
    """
    with with_resume_advice(checkpoint):
        with failing_together(run.ranks):
            state = read_state(run, checkpoint)
            _check_batches(run, checkpoint, state, cursor)
        engine.load(checkpoint / ENGINE_FOLDER, "dcp")
    return state


def read_state(run: RunContext, checkpoint: Path) -> TrainerState:
    """Where the run stood when ``checkpoint`` was written.

    Raises:
        DamagedError: its file is damaged.
    """
    file, seal = checkpoint / STATE_FILE, read_seal(checkpoint)
    if seal is None:
        reason = "it has no checksums: an earlier version of archon-rl wrote it, or they were removed"
        unchecked = Decision("trainer.resume", f"{file}, checked", "not checked for damage", reason)
        if unchecked not in run.decisions:
            run.decisions.append(unchecked)
    else:
        check_file(file, seal[STATE_FILE])
    try:
        return TrainerState(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{file}: it cannot be read ({error})") from error


def _check_batches(run: RunContext, checkpoint: Path, state: TrainerState, cursor: DataCursor) -> None:
    if cursor.batch_size != state.batch_size:
        raise WeightsError(
            f"checkpoint {checkpoint}: found data.batch_size {cursor.batch_size}, the run began with "
            f"{state.batch_size}; the order of records depends on it: set data.batch_size={state.batch_size}, or begin "
            "a new run with another trial_name"
        )
    accepted = "data" in run.config.trainer.accept_changed
    if cursor.n_records != state.n_records and not accepted:
        raise WeightsError(
            f"checkpoint {checkpoint}: found {cursor.n_records} training records, the run began with "
            f"{state.n_records}; restore them, go on with trainer.accept_changed=[data], or begin a new run with "
            "another trial_name"
        )


@contextmanager
def with_resume_advice(checkpoint: Path) -> Iterator[None]:
    """Say how to go on without a damaged checkpoint; that is never done unasked."""
    try:
        yield
    except DamagedError as error:
        error.add_note(f"to go on from the checkpoint before, if there is one, move {checkpoint} away and resume again")
        raise


def export_model(run: RunContext, engine: TrainEngine, tokenizer: Any, ends: EndTokens) -> Path:
    """Write model and tokenizer to the run's ``export`` folder, in Hugging Face's form. All ranks call this.

    Whoever generates with the export ends completions at the tokens at which the run did, but for those of
    ``gconfig.stop_token_ids``, which belong to the run.
    """
    with written_together(run.ranks, run.folder.exporting()) as export:
        engine.save(export, "hf")
        with failing_together(run.ranks):
            if run.ranks.is_first:
                save_tokenizer(tokenizer, export)
                if write_ends(export, ends.own):
                    run.record([_written_ends(ends)])
    return run.folder.export


def _written_ends(ends: EndTokens) -> Decision:
    return Decision(
        f"export/{GENERATION_CONFIG}",
        "eos_token_id as the model's files give it",
        f"eos_token_id={list(ends.own)}",
        "the run ended completions there, so whoever loads the export does too",
    )
