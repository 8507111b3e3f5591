"""``PreferenceTrainer``: trains on pairs of a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Loss
from archon_rl.losses.preference import REFERENCE
from archon_rl.preference_algorithms import PreferenceAlgorithmFactory
from archon_rl.preference_encoding import chosen_batch, longest_of_pair, preference_batch
from archon_rl.trainer.composition import composed
from archon_rl.trainer.engines import (
    build_train_engine,
    complete_model_config,
    reference_config,
    with_checkpoint,
    with_single_sequences,
)
from archon_rl.trainer.evaluation import evaluated_size
from archon_rl.trainer.loop import TrainingLoop
from archon_rl.trainer.reference_logprobs import ReferenceLogprobs, ReferenceModel, reference_logprobs
from archon_rl.trainer.resuming import fingerprints
from archon_rl.trainer.sequence_lengths import preference_limits
from archon_rl.trainer.sft import supervised_step
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.task import Task, build_task
from archon_rl.trainer.warm_start import WarmStart
from archon_train.run.context import RunContext


class PreferenceTrainer:
    """Learning from preferences, for policies and reward models; implements ``contracts.train.Trainer``.

    Args:
        run: the run.
        algorithm: builds the algorithm.
    """

    def __init__(self, run: RunContext, algorithm: PreferenceAlgorithmFactory) -> None:
        self._run, self._algorithm = run, composed(run, algorithm)

    def fit(self) -> None:
        """Run the whole training.

        Raises:
            KeyboardInterrupt: the user asked to stop.
            ArchonError: from the data, the engines or the checkpoints.
        """
        run, config, algorithm = self._run, self._run.config, self._algorithm
        others = [config.ref] if algorithm.needs_reference and config.ref is not None else []
        task = build_task(run, longest_of_pair, preference_limits(config.actor, *others))
        known = fingerprints(run, task.train, task.validation)
        total_steps = task.total_steps(config.trainer)
        actor = self._initial_actor(task)
        reference = None
        if algorithm.needs_reference:
            model = self._reference_model(actor)
            reference = reference_logprobs(run, task, total_steps, known, model)
        actor = algorithm.section(actor)
        engine = build_train_engine(run, actor, role="actor", total_steps=total_steps)
        shared = SharedEngine(
            engine, actor.mb_spec.granularity, run.recordings, shares_prefixes=actor.enable_tree_training
        )

        def run_step(step: int) -> dict[str, float]:
            train = None if reference is None else reference.train
            batch = _batch(task, task.records(step), train, task.cursor.indices(step))
            return supervised_step(shared, batch, algorithm.loss)

        def evaluate() -> dict[str, float]:
            metrics = evaluate_pairs(shared, _validation_batches(run, task, reference), algorithm.loss)
            return {f"eval/{name}": metrics[name] for name in ("loss", *algorithm.evaluated)}

        try:
            loop = TrainingLoop(
                run=run,
                task=task,
                engine=engine,
                total_steps=total_steps,
                run_step=run_step,
                evaluate=evaluate if len(task.validation) else None,
                fingerprints=known,
                shown=("loss", "accuracy"),
                is_critic=algorithm.is_critic,
            )
            loop.run_from(loop.resume())
        finally:
            engine.close()

    def _initial_actor(self, task: Task) -> Any:
        """The section ``actor`` with the weights that training starts from."""
        run = self._run
        actor = complete_model_config(run, task.encoder.tokenizer)
        if not hasattr(run.config, "warm_start"):
            return actor
        checkpoint = WarmStart("actor", run.config.warm_start, build_batch=chosen_batch).run(run, actor, task)
        return actor if checkpoint is None else with_checkpoint(actor, checkpoint)

    def _reference_model(self, actor: Any) -> ReferenceModel:
        run = self._run
        role = "actor" if run.config.ref is None else "ref"
        section = replace(actor, optimizer=None) if run.config.ref is None else reference_config(run.config.ref, actor)
        section = with_single_sequences(section)

        @contextmanager
        def opened() -> Iterator[SharedEngine]:
            engine = build_train_engine(run, section, role=role, total_steps=None)
            try:
                yield SharedEngine(engine, shares_prefixes=section.enable_tree_training)
            finally:
                engine.close()

        return ReferenceModel(section, self._algorithm.loss.request, opened)


def evaluate_pairs(engine: SharedEngine, batches: Iterator[Batch], loss: Loss) -> dict[str, float]:
    """``loss`` and its metrics as means over the pairs of all batches; independent of the batches' sizes."""
    totals: dict[str, float] = {}
    n_sequences = 0
    for batch in batches:
        stats = engine.eval_batch(batch, loss)
        for name, value in {"loss": stats.loss, **stats.metrics}.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch)
        n_sequences += len(batch)
    return {name: total / n_sequences for name, total in totals.items()}


def _validation_batches(run: RunContext, task: Task, reference: ReferenceLogprobs | None) -> Iterator[Batch]:
    size = evaluated_size(task.validation, run.config.trainer.eval_size)
    for start in range(0, size, run.config.data.batch_size):
        indices = range(start, min(start + run.config.data.batch_size, size))
        records = [task.validation[index] for index in indices]
        yield _batch(task, records, None if reference is None else reference.validation, indices)


def _batch(task: Task, records: Sequence[Mapping[str, Any]], reference: Tensor | None, indices: Sequence[int]) -> Batch:
    """The batch of ``records``, with the rows ``indices`` of ``reference`` [records, 2]."""
    batch = preference_batch(task.encoder, records)
    if reference is None:
        return batch
    return batch.with_fields(sequence_fields={REFERENCE: reference[list(indices)].flatten()})
