"""``SFTTrainer``: supervised fine-tuning on the answers of a data set."""

from __future__ import annotations

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Loss
from archon_rl.algorithm import AlgorithmFactory
from archon_rl.text_encoding import supervised_batch
from archon_rl.trainer.composition import composed
from archon_rl.trainer.engines import build_train_engine, complete_model_config
from archon_rl.trainer.evaluation import evaluate_loss
from archon_rl.trainer.loop import TrainingLoop
from archon_rl.trainer.resuming import fingerprints
from archon_rl.trainer.sequence_lengths import example_lengths, supervised_limits
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.step_metrics import PhaseClock, average
from archon_rl.trainer.task import build_task
from archon_train.run.context import RunContext


class SFTTrainer:
    """Supervised fine-tuning with the loss on answers; implements ``contracts.train.Trainer``.

    Args:
        run: the run.
        algorithm: builds the algorithm.
    """

    def __init__(self, run: RunContext, algorithm: AlgorithmFactory) -> None:
        self._run, self._algorithm = run, composed(run, algorithm)

    def fit(self) -> None:
        """Run the whole training.

        Raises:
            KeyboardInterrupt: the user asked to stop.
            ArchonError: from the data, the engine or the checkpoints.
        """
        run, config = self._run, self._run.config
        objective = self._algorithm.objective
        task = build_task(run, example_lengths, supervised_limits(config.actor))
        known = fingerprints(run, task.train, task.validation)
        total_steps = task.total_steps(config.trainer)
        actor = complete_model_config(run, task.encoder.tokenizer)
        engine = build_train_engine(run, actor, role="actor", total_steps=total_steps)
        shared = SharedEngine(
            engine, actor.mb_spec.granularity, run.recordings, shares_prefixes=actor.enable_tree_training
        )

        def run_step(step: int) -> dict[str, float]:
            return supervised_step(shared, supervised_batch(task.encoder, task.records(step)), objective)

        def evaluate() -> dict[str, float]:
            return evaluate_loss(
                shared,
                task.encoder,
                task.validation,
                objective,
                batch_size=config.data.batch_size,
                limit=config.trainer.eval_size,
            )

        try:
            tested = evaluate if len(task.validation) else None
            loop = TrainingLoop(run, task, engine, total_steps, run_step, tested, known)
            loop.run_from(loop.resume())
        finally:
            engine.close()


def supervised_step(engine: SharedEngine, batch: Batch, objective: Loss) -> dict[str, float]:
    """Run one optimizer step; return its metrics."""
    clock = PhaseClock()
    with clock("update"):
        updates = [engine.train_batch(batch, objective)]
    times = clock.metrics()
    return {
        **average(updates),
        "version": engine.version,
        "tokens": batch.n_tokens,
        "tokens_per_second": batch.n_tokens / times["time/step"],
        **times,
    }
