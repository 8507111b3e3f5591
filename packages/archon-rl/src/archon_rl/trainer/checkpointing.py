"""Checkpoints of a run: the engine's training state, and the progress of the trainer.

``dcp/`` holds weights and optimizer state, ``critic/dcp/`` those of a critic, ``trainer.json`` everything else. None
holds random generator state: all draws of a step are functions of the run's seed and the step.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StagedState, TrainEngine
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
from archon_rl.fingerprint import Fingerprint
from archon_rl.trainer.sharing import publish_collectively
from archon_train.run.context import RunContext

STATE_FILE = "trainer.json"
COLLECTION_FILE = "collection.msgpack"
"""State of a collector: groups that are finished and not consumed."""
ENGINE_FOLDER = "dcp"
TOKENIZER_FOLDER = "tokenizer"
"""In the run folder: a copy of the tokenizer, and the tokens that end completions."""


NONE: Mapping[str, Fingerprint] = MappingProxyType({})


class SavedModel(Protocol):
    """The part of a ``TrainEngine`` that checkpoints use; models beside the actor may be on other ranks."""

    @property
    def decisions(self) -> Sequence[Decision]: ...

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None: ...

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None: ...

    def stage(self) -> StagedState: ...


NO_ENGINES: Mapping[str, SavedModel] = MappingProxyType({})


@dataclass(frozen=True)
class TrainerState:
    """The progress of a run, as ``trainer.json`` stores it.

    Attributes:
        step: completed training steps.
        version: of the weights.
        epoch: of the next record.
        position: of the next record in its epoch.
        n_records: number of training records; the order of records depends on it.
        batch_size: records per step; a resumed run needs the same value for the same order.
        baseline: metrics of the evaluation before training.
        fingerprints: name -> ``fingerprint.Fingerprint`` as a dict, of the run's inputs; ``None`` in states of earlier
            versions.
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
    """The checkpoint that ``run`` resumes from; ``None`` if it starts from scratch.

    The first rank searches and broadcasts: on a shared file system, other ranks may see a new folder late.
    """
    found = run.folder.latest_checkpoint() if run.config.trainer.resume and run.ranks.is_first else None
    return run.ranks.broadcast(found)


class Checkpoints:
    """Writes the checkpoints of a run, synchronously or in the background, and removes superseded ones.

    All ranks call the same methods in the same order.

    Args:
        run: the run, with the options ``trainer.async_save``, ``keep_last`` and ``keep_every``.
        engine: the engine of the trained model.
        cursor: the position in the data.
        fingerprints: of the run's inputs.
        beside: role -> engine of the models that are trained beside it.
    """

    def __init__(
        self,
        run: RunContext,
        engine: TrainEngine,
        cursor: DataCursor,
        fingerprints: Mapping[str, Fingerprint] = NONE,
        beside: Mapping[str, SavedModel] = NO_ENGINES,
    ) -> None:
        self._run = run
        self._engine = engine
        self._engines = _folders(engine, beside)
        self._cursor = cursor
        self._fingerprints = {name: asdict(found) for name, found in fingerprints.items()}
        self._pending: Future[None] | None = None
        self._apart: Ranks | None = None

    def save(self, step: int, baseline: dict[str, float], collection: bytes | None = None) -> None:
        """Write the checkpoint of ``step``, or start to write it in the background. Publication is atomic.

        Args:
            collection: the first rank's state of the ``Collection``.

        Raises:
            WeightsError: this or the previous checkpoint could not be written.
        """
        self.finish()
        epoch, position = self._cursor.position(step)
        n_records, batch_size = self._cursor.n_records, self._cursor.batch_size
        place = (epoch, position, n_records, batch_size)
        state = TrainerState(step, self._engine.version, *place, baseline, self._fingerprints)
        if not self._run.config.trainer.async_save:

            def save(checkpoint: Path) -> None:
                for folder, engine in self._engines.items():
                    engine.save(checkpoint / folder, "dcp")

            self._write(state, save, self._run.ranks, collection)
            return
        if self._apart is None:
            self._apart = self._run.ranks.apart()
        ranks, staged = self._apart, {folder: engine.stage() for folder, engine in self._engines.items()}

        def write(checkpoint: Path) -> None:
            for folder, engine_state in staged.items():
                engine_state.write(checkpoint / folder, ranks)

        self._pending = _in_background(lambda: self._write(state, write, ranks, collection))

    def poll(self) -> None:
        """Between steps: finish the background write if it has ended on all ranks.

        Raises:
            WeightsError: the checkpoint could not be written.
        """
        # Ranks may finish at different times, but all must raise in the same call.
        if self._pending is not None and all(self._run.ranks.gather(self._pending.done())):
            self.finish()

    def finish(self) -> None:
        """Wait for the background write, if there is one.

        Raises:
            WeightsError: the checkpoint could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def abandon(self) -> None:
        """After an error: wait for the write of a single process; with more ranks, peers may be gone, so do not
        wait."""
        if self._pending is not None and self._run.ranks.size == 1:
            wait([self._pending])

    def _write(
        self,
        state: TrainerState,
        write_engines: Callable[[Path], None],
        ranks: Ranks,
        collection: bytes | None,
    ) -> None:
        folder, trainer = self._run.folder, self._run.config.trainer
        with publish_collectively(ranks, folder.writing(state.step)) as checkpoint:
            write_engines(checkpoint)
            with failing_together(ranks):
                if ranks.is_first:
                    (checkpoint / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
                    files = [STATE_FILE]
                    if collection is not None:
                        (checkpoint / COLLECTION_FILE).write_bytes(collection)
                        files.append(COLLECTION_FILE)
                    write_seal(checkpoint, {file: seal_whole(checkpoint / file) for file in files})
        with failing_together(ranks):
            if ranks.is_first:
                folder.remove_superseded(keep_last=trainer.keep_last, keep_every=trainer.keep_every)


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run ``work`` in a daemon thread, so that a second Ctrl-C ends the process at once."""
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


def load_checkpoint(
    run: RunContext,
    checkpoint: Path,
    engine: TrainEngine,
    cursor: DataCursor,
    beside: Mapping[str, SavedModel] = NO_ENGINES,
) -> TrainerState:
    """Load the checkpoint's weights and optimizer state into ``engine`` and the engines ``beside`` it, and the place in
    the data. Collective.

    Raises:
        WeightsError: on every rank, the checkpoint is damaged, or was written for another batch size or data set size,
            or by a run without one of the engines.
    """
    with with_resume_advice(checkpoint):
        with failing_together(run.ranks):
            state = read_state(run, checkpoint)
            _check_batches(run, checkpoint, state, cursor)
            _check_roles(checkpoint, beside)
        for folder, loading in _folders(engine, beside).items():
            loading.load(checkpoint / folder, "dcp")
    cursor.seek(state.step, drawn=state.epoch * state.n_records + state.position)
    return state


def _folders(engine: TrainEngine, beside: Mapping[str, SavedModel]) -> dict[str, SavedModel]:
    """Folder in a checkpoint -> engine."""
    return {ENGINE_FOLDER: engine, **{f"{role}/{ENGINE_FOLDER}": other for role, other in beside.items()}}


def _check_roles(checkpoint: Path, beside: Mapping[str, SavedModel]) -> None:
    missing = [role for role in beside if not (checkpoint / role).is_dir()]
    if missing:
        raise WeightsError(
            f"checkpoint {checkpoint}: found no state of the {missing[0]}; a run with another algorithm wrote it; "
            "resume with that algorithm, or start a new run with another trial_name"
        )


def read_state(run: RunContext, checkpoint: Path) -> TrainerState:
    """The progress of the run at ``checkpoint``.

    Raises:
        DamagedError: ``trainer.json`` is damaged.
    """
    file, seal = checkpoint / STATE_FILE, read_seal(checkpoint)
    if seal is None:
        reason = "the checkpoint has no checksums: an earlier version of archon-rl wrote it, or they were removed"
        unchecked = Decision("trainer.resume", f"{file}, checked", "not checked for damage", reason)
        if unchecked not in run.decisions:
            run.decisions.append(unchecked)
    else:
        check_file(file, seal[STATE_FILE])
    try:
        return TrainerState(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{file}: cannot read the file ({error})") from error


def read_collection(checkpoint: Path) -> bytes | None:
    """The state of the ``Collection`` at a checkpoint; ``None`` if it has none.

    Raises:
        DamagedError: the file is damaged.
    """
    file, seal = checkpoint / COLLECTION_FILE, read_seal(checkpoint) or {}
    if COLLECTION_FILE not in seal:
        return None
    check_file(file, seal[COLLECTION_FILE])
    return file.read_bytes()


def _check_batches(run: RunContext, checkpoint: Path, state: TrainerState, cursor: DataCursor) -> None:
    if cursor.batch_size != state.batch_size:
        raise WeightsError(
            f"data.batch_size: found {cursor.batch_size}, but the run of checkpoint {checkpoint} started with "
            f"{state.batch_size}, and the order of records depends on it; set data.batch_size={state.batch_size}, or "
            "start a new run with another trial_name"
        )
    accepted = "data" in run.config.trainer.accept_changed
    if cursor.n_records != state.n_records and not accepted:
        raise WeightsError(
            f"checkpoint {checkpoint}: found {cursor.n_records} training records, but the run started with "
            f"{state.n_records}; restore the data, accept it with trainer.accept_changed=[data], or start a new run "
            "with another trial_name"
        )


@contextmanager
def with_resume_advice(checkpoint: Path) -> Iterator[None]:
    """Add to a DamagedError how to resume from an earlier checkpoint; that never happens automatically."""
    try:
        yield
    except DamagedError as error:
        error.add_note(f"to resume from the previous checkpoint, if there is one, move {checkpoint} away and run again")
        raise


def export_model(run: RunContext, engine: TrainEngine, tokenizer: Any, ends: EndTokens) -> Path:
    """Write model and tokenizer to the run's ``export`` folder in Hugging Face format. Collective.

    The exported ``generation_config.json`` ends completions at the same tokens as the run, except for
    ``gconfig.stop_token_ids``, which apply to the run only.
    """
    with publish_collectively(run.ranks, run.folder.exporting()) as export:
        engine.save(export, "hf")
        with failing_together(run.ranks):
            if run.ranks.is_first:
                save_tokenizer(tokenizer, export)
                if write_ends(export, ends.own):
                    run.record([_written_ends(ends)])
    return run.folder.export


def export_beside(run: RunContext, engine: SavedModel, role: str, tokenizer: Any) -> Path:
    """Write a model that is trained beside the actor, and the tokenizer, to the run's ``export_<role>``. Collective."""
    with publish_collectively(run.ranks, run.folder.exporting(role)) as export:
        engine.save(export, "hf")
        with failing_together(run.ranks):
            if run.ranks.is_first:
                save_tokenizer(tokenizer, export)
    return run.folder.export_of(role)


def _written_ends(ends: EndTokens) -> Decision:
    return Decision(
        f"export/{GENERATION_CONFIG}",
        "eos_token_id from the model's files",
        f"eos_token_id={list(ends.own)}",
        "completions of the exported model end where those of the run did",
    )
