"""The training loop of all trainers: steps, evaluations, checkpoints, requests to stop, and the final export.

All ranks run it in lockstep: every branch depends on values that are equal on all ranks, or that the ranks agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from archon_core.contracts.engine import TrainEngine
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.role_link import distinct
from archon_rl.fingerprint import Fingerprint
from archon_rl.text_encoding import comparison_batch
from archon_rl.trainer.checkpointing import (
    Checkpoints,
    SavedModel,
    export_beside,
    export_model,
    load_checkpoint,
    read_collection,
    resumed_checkpoint,
)
from archon_rl.trainer.collecting import Collection, StoppedWaitingError
from archon_rl.trainer.export_check import verify_export, verify_value_export
from archon_rl.trainer.role_requests import BeginProfile, EndProfile
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import PhaseClock, peak_bytes
from archon_rl.trainer.task import Task
from archon_train.run.context import RunContext
from archon_train.run.step_profiler import StepProfiler, check_profiled_steps

EXPORT_CHECK_RECORDS = 4


@dataclass
class TrainingLoop:
    """Runs ``run_step`` until ``total_steps`` are done.

    Attributes:
        run: the run.
        task: data and tokenizer.
        engine: the engine of the trained model.
        total_steps: training steps of the whole run.
        run_step: runs step n, counted from 0; returns its metrics, including ``tokens``.
        evaluate: returns metrics of the held-out records; ``None`` without such records. May raise StoppedWaitingError
            on all ranks.
        fingerprints: of the run's inputs (``resuming.fingerprints``), stored in checkpoints.
        shown: metrics to show in the progress line if present.
        beside: role -> engine of the models that are trained beside it, such as the critic.
        is_critic: whether the model has a value head.
        collection: provides completions; ``None`` for training on the data themselves.
    """

    run: RunContext
    task: Task
    engine: TrainEngine
    total_steps: int
    run_step: Callable[[int], dict[str, float]]
    evaluate: Callable[[], dict[str, float]] | None
    fingerprints: Mapping[str, Fingerprint]
    shown: tuple[str, ...] = ("loss",)
    beside: Mapping[str, SavedModel] = field(default_factory=dict)
    is_critic: bool = False
    collection: Collection | None = None
    _baseline: dict[str, float] = field(default_factory=dict, init=False)
    _latest: dict[str, float] = field(default_factory=dict, init=False)
    _saved: int = field(default=0, init=False)
    _checkpoints: Checkpoints = field(init=False)
    _profiler: StepProfiler = field(init=False)

    def __post_init__(self) -> None:
        self._profiler = StepProfiler.of(self.run)
        self._checkpoints = Checkpoints(self.run, self.engine, self.task.cursor, self.fingerprints, self.beside)

    def resume(self) -> int:
        """Load the run's latest checkpoint, if any, into the engines; return the number of completed steps."""
        checkpoint = resumed_checkpoint(self.run)
        if checkpoint is None:
            return 0
        state = load_checkpoint(self.run, checkpoint, self.engine, self.task.cursor, self.beside)
        for engine in (self.engine, *self.beside.values()):
            self.run.record(engine.decisions)
        if self.collection is not None:
            with failing_together(self.run.ranks):
                kept = read_collection(checkpoint) if self.run.ranks.is_first else None
            self.collection.restore(kept)
        self._baseline, self._saved = state.baseline, state.step
        self.run.progress.note(f"Resuming after step {state.step} from {checkpoint}")
        return state.step

    def run_from(self, done: int) -> None:
        """Train from ``done`` completed steps to the end, then export.

        Raises:
            KeyboardInterrupt: the user asked to stop; the last completed step, if there is one, has a checkpoint.
            TrainingError: the verification of the export failed.
        """
        if done >= self.total_steps:
            self.run.progress.note(f"Nothing left to train: {done} of {self.total_steps} steps are done")
        if done == 0 and self.evaluate is not None and self.run.config.trainer.eval_before_train:
            self._stop_before_first_step()
            try:
                self._baseline = self._latest = self.evaluate()
            except StoppedWaitingError:
                self._stop_after(done)
            self.run.metrics.log(0, self._baseline)
            self.run.progress.note(f"Held-out records before training: {_listed(self._baseline)}")
        check_profiled_steps(self.run, done=done, total_steps=self.total_steps)
        self._stop_before_first_step()
        self.run.start_steps(self.total_steps, completed=done)
        try:
            while done < self.total_steps:
                try:
                    row = self._run_step(done)
                except StoppedWaitingError:
                    self._stop_after(done)
                done += 1
                self._finish_step(done, row)
            self._finish_run()
        except Exception:
            self._checkpoints.abandon()
            raise

    def _run_step(self, done: int) -> dict[str, float]:
        """The metrics of the step after ``done`` steps, with the memory that it took."""
        row = self._run_profiled_step(done)
        peak = max(self.run.ranks.gather(peak_bytes(self.engine.device)))
        return {**row, "memory/peak_gb": peak / 1e9}

    def _run_profiled_step(self, done: int) -> dict[str, float]:
        """The step after ``done`` steps, and its profile if it is to have one."""
        step = done + 1
        if not self._profiler.covers(step):
            return self.run_step(done)
        if self.run.ranks.is_first:
            self._profiler.clear(step)
        self.run.ranks.barrier()
        links = distinct(self.run.links)
        for link in links:
            link.ask(BeginProfile(step))
        engines = (self.engine, *(model.engine for model in self.beside.values() if isinstance(model, SharedEngine)))
        with self._profiler(step, engines):
            row = self.run_step(done)
        for link in links:
            link.ask(EndProfile())
        return {**row, "profiled": 1}

    def _finish_step(self, done: int, row: dict[str, float]) -> None:
        trainer, last = self.run.config.trainer, done == self.total_steps
        for note in _update_notes(row, ("", *(f"{role}/" for role in self.beside))):
            self.run.progress.note(f"Step {done}: {note}")
        if row.get("missing_prompts") and row["sampling_rounds"] > 1:
            found = row["prompts"] - row["rejected_prompts"]
            self.run.progress.note(
                f"Step {done}: {found:.0f} of {row['prompts']:.0f} prompts, drawn in {row['sampling_rounds']:.0f} "
                f"rounds, have samples with different rewards; {row['missing_prompts']:.0f} are missing from the batch"
            )
        clock, stop = PhaseClock(), False
        if self.evaluate is not None and (last or _is_due(done, trainer.eval_every)):
            try:
                with clock("eval"):
                    self._latest = self.evaluate()
                row = {**row, **self._latest, "time/eval": clock.metrics()["time/eval"]}
            except StoppedWaitingError:
                stop = True
                self.run.progress.note(f"Step {done}: stopped during the evaluation, which has no metrics")
        self.run.metrics.log(done, row)
        shown = {name: row[name] for name in (*self.shown, *self._latest) if name in row}
        self.run.progress.update(done, n_tokens=int(row["tokens"]), **shown)
        self._checkpoints.poll()
        stop = stop or (not last and self._stop_requested())
        if last or _is_due(done, trainer.save_every):
            self._save(done)
        if stop:
            self._stop_after(done)

    def _save(self, done: int) -> None:
        with failing_together(self.run.ranks):
            kept = self.collection.state() if self.collection and self.run.ranks.is_first else None
        self._checkpoints.save(done, self._baseline, kept)
        self._saved = done

    def _stop_after(self, done: int) -> NoReturn:
        """End the run after ``done`` steps, the last of which gets a checkpoint if it has none."""
        if done == 0:
            raise KeyboardInterrupt("stopped before the first step")
        if self._saved != done:
            self._save(done)
        self._checkpoints.finish()
        raise KeyboardInterrupt(f"stopped after step {done}")

    def _stop_before_first_step(self) -> None:
        if self._stop_requested():
            raise KeyboardInterrupt("stopped before the first step")

    def _stop_requested(self) -> bool:
        # A signal may reach some ranks late or never; all must stop after the same step.
        return self.run.ranks.any(self.run.stop.requested)

    def _finish_run(self) -> None:
        note = self.run.progress.note
        self._checkpoints.finish()
        export = export_model(self.run, self.engine, self.task.encoder.tokenizer, self.task.ends)
        note(f"Model and tokenizer exported to {export}")
        for role, engine in self.beside.items():
            note(f"The {role} exported to {export_beside(self.run, engine, role, self.task.encoder.tokenizer)}")
        if self.run.config.trainer.verify_export:
            records = self.task.validation if len(self.task.validation) else self.task.train
            sample = [records[i] for i in range(min(EXPORT_CHECK_RECORDS, len(records)))]
            batch = comparison_batch(self.task.encoder, sample)
            check = verify_value_export if self.is_critic else verify_export
            difference = check(self.engine, export, batch, self.run.ranks)
            what = "score" if self.is_critic else "logit"
            note(
                f"Export verified: {what}s differ from transformers' by at most {difference:.1e} of the largest {what}"
            )
        if self._latest:
            before = f"{_listed(self._baseline)} before, " if self._baseline else ""
            note(f"Held-out records: {before}{_listed(self._latest)} after training")


def _update_notes(row: Mapping[str, float], prefixes: Iterable[str]) -> Iterator[str]:
    """Updates of a step that did not take place; ``prefixes`` are those of the models' metrics."""
    for prefix in prefixes:
        whose = f" of the {prefix.removesuffix('/')}" if prefix else ""
        if row.get(f"{prefix}skipped_updates"):
            yield (
                f"skipped {row[f'{prefix}skipped_updates']:.0f} of {row[f'{prefix}updates']:.0f} updates{whose}, "
                "because their gradient norm was not finite"
            )
        if row.get(f"{prefix}left_out_updates"):
            yield (
                f"left out {row[f'{prefix}left_out_updates']:.0f} mini-batches{whose} without a completion to learn "
                "from"
            )


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
