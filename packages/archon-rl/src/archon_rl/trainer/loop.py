"""The loop that all trainers share: steps, evaluations, checkpoints, a request to stop, and the export at the end.

All ranks run it in step: what decides where it goes is the same for all of them, or agreed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from archon_core.contracts.engine import TrainEngine
from archon_rl.text_encoding import comparison_batch
from archon_rl.trainer.checkpointing import Checkpoints, export_model, load_checkpoint, resumed_checkpoint
from archon_rl.trainer.export_check import verify_export
from archon_rl.trainer.fingerprint import Fingerprint
from archon_rl.trainer.step_metrics import PhaseClock
from archon_rl.trainer.task import Task
from archon_train.run.context import RunContext

EXPORT_CHECK_RECORDS = 4


@dataclass
class TrainingLoop:
    """Runs ``run_step`` until ``total_steps`` are done.

    Attributes:
        run: the run.
        task: its data.
        engine: the model in training.
        total_steps: training steps of the whole run.
        run_step: does step number n, counted from 0, and returns its metrics, ``tokens`` among them.
        evaluate: metrics of the held-out records; ``None`` when there are none.
        fingerprints: what the run learns from (``resuming.fingerprints``), for its checkpoints.
        shown: metrics for the progress line, as far as a step has them.
    """

    run: RunContext
    task: Task
    engine: TrainEngine
    total_steps: int
    run_step: Callable[[int], dict[str, float]]
    evaluate: Callable[[], dict[str, float]] | None
    fingerprints: Mapping[str, Fingerprint]
    shown: tuple[str, ...] = ("loss",)
    _baseline: dict[str, float] = field(default_factory=dict, init=False)
    _latest: dict[str, float] = field(default_factory=dict, init=False)
    _checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        self._checkpoints = Checkpoints(self.run, self.engine, self.task.cursor, self.fingerprints)

    def resume(self) -> int:
        """Give the engine the run's last checkpoint, if there is one; return the steps that are done."""
        checkpoint = resumed_checkpoint(self.run)
        if checkpoint is None:
            return 0
        state = load_checkpoint(self.run, checkpoint, self.engine, self.task.cursor)
        self.run.record(self.engine.decisions)
        self._baseline = state.baseline
        self.run.progress.note(f"Resuming after step {state.step} from {checkpoint}")
        return state.step

    def run_from(self, done: int) -> None:
        """Train from ``done`` steps to the end, then export.

        Raises:
            KeyboardInterrupt: the user asked to stop; a checkpoint of the step that was done last, if any, is there.
            TrainingError: the export is not what it should be.
        """
        if done >= self.total_steps:
            self.run.progress.note(f"Nothing is left to train: {done} of {self.total_steps} steps are done")
        if done == 0 and self.evaluate is not None:
            self._stop_before_first_step()
            self._baseline = self._latest = self.evaluate()
            self.run.metrics.log(0, self._baseline)
            self.run.progress.note(f"Held-out records before training: {_listed(self._baseline)}")
        self._stop_before_first_step()
        self.run.progress.start(self.total_steps, completed=done)
        try:
            while done < self.total_steps:
                row = self.run_step(done)
                done += 1
                self._finish_step(done, row)
            self._finish_run()
        except Exception:
            self._checkpoints.leave()
            raise

    def _finish_step(self, done: int, row: dict[str, float]) -> None:
        trainer, last = self.run.config.trainer, done == self.total_steps
        if row.get("skipped_updates"):
            self.run.progress.note(
                f"Step {done}: {row['skipped_updates']:.0f} of {row['updates']:.0f} updates were skipped, because "
                "their gradient norm was not finite"
            )
        if row.get("left_out_updates"):
            self.run.progress.note(
                f"Step {done}: {row['left_out_updates']:.0f} mini-batches were left out, because they hold no "
                "completion to learn from"
            )
        clock = PhaseClock()
        if self.evaluate is not None and (last or _is_due(done, trainer.eval_every)):
            with clock("eval"):
                self._latest = self.evaluate()
            row = {**row, **self._latest, "time/eval": clock.metrics()["time/eval"]}
        self.run.metrics.log(done, row)
        shown = {name: row[name] for name in (*self.shown, *self._latest) if name in row}
        self.run.progress.update(done, n_tokens=int(row["tokens"]), **shown)
        self._checkpoints.look()
        stop = not last and self._stop_requested()
        if last or stop or _is_due(done, trainer.save_every):
            self._checkpoints.save(done, self._baseline)
        if stop:
            self._checkpoints.finish()
            raise KeyboardInterrupt(f"stopped after step {done}")

    def _stop_before_first_step(self) -> None:
        if self._stop_requested():
            raise KeyboardInterrupt("stopped before the first step")

    def _stop_requested(self) -> bool:
        # A signal may have reached some ranks only, or some later than others: they must stop after the same step.
        return self.run.ranks.any(self.run.stop.requested)

    def _finish_run(self) -> None:
        note = self.run.progress.note
        self._checkpoints.finish()
        export = export_model(self.run, self.engine, self.task.encoder.tokenizer, self.task.ends)
        note(f"Model and tokenizer exported to {export}")
        if self.run.config.trainer.verify_export:
            records = self.task.validation if len(self.task.validation) else self.task.train
            sample = [records[i] for i in range(min(EXPORT_CHECK_RECORDS, len(records)))]
            batch = comparison_batch(self.task.encoder, sample)
            difference = verify_export(self.engine, export, batch, self.run.ranks)
            note(f"Export verified: logits of transformers differ by at most {difference:.1e} of the largest one")
        if self._latest:
            note(f"Held-out records: {_listed(self._baseline)} before, {_listed(self._latest)} after training")


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
