"""Supervised warm start before the training proper, of the actor and of a teacher without a checkpoint.

It runs on a separate engine with its own learning rate and optimizer state, and writes a checkpoint to the run folder.
The actor starts from that checkpoint, and so does the reference unless it names another one; a teacher stays at it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.seeding import derive_seed
from archon_engine.checkpoint.publication import publish_folder
from archon_rl.config import WarmStartOptions
from archon_rl.datasets.cursor import DataCursor
from archon_rl.losses.objective import Objective
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.shared_reference import has_adapters
from archon_rl.text_encoding import supervised_batch
from archon_rl.trainer.checkpointing import resumed_checkpoint
from archon_rl.trainer.engines import build_train_engine, whole_model, with_single_sequences
from archon_rl.trainer.sft import supervised_step
from archon_rl.trainer.sharing import SharedEngine, publish_collectively
from archon_rl.trainer.task import Task
from archon_train.run.context import RunContext

WARMUP_PROPORTION = 0.1

BatchBuilder = Callable[[Any, Sequence[Mapping[str, Any]]], Batch]
"""(encoder, records) -> the batch of a supervised step."""


@dataclass(frozen=True)
class WarmStart:
    """The supervised steps of one model.

    Attributes:
        role: the model's section of the configuration.
        options: number of steps, learning rate and batch size.
        last_step: step of the run at which the last row of metrics is logged; 0 or less.
        build_batch: makes the batch of a step.
    """

    role: str
    options: WarmStartOptions
    last_step: int = 0
    build_batch: BatchBuilder = supervised_batch

    @property
    def name(self) -> str:
        """Prefix of its metrics, and name of its folder in the run folder."""
        return "warm_start" if self.role == "actor" else f"{self.role}_warm_start"

    def run(self, run: RunContext, section: Any, task: Task) -> Path | None:
        """Run the steps on the model of ``section``; return the checkpoint, or ``None`` for no steps.

        A resumed run returns the existing checkpoint. Metrics are logged at steps up to ``last_step``, so that step 1
        is the first step of the training that follows.

        Raises:
            KeyboardInterrupt: the user asked to stop; nothing is kept, and the next run starts over.
        """
        options, folder = self.options, run.folder.path / self.name
        if options.steps == 0:
            return None
        if resumed_checkpoint(run) is not None:
            return folder
        optimizer = replace(
            section.optimizer, lr=options.lr, lr_scheduler_type="linear", warmup_steps_proportion=WARMUP_PROPORTION
        )
        # Groups of sequences belong to the training that follows; here any batch size is right.
        section = with_single_sequences(replace(section, optimizer=optimizer))
        if has_adapters(section):
            reason = "adapters start from the result"
            run.record([Decision(f"{self.name}.steps", "adapters", "train all weights of the model", reason)])
            section = whole_model(section)
        engine = build_train_engine(run, section, role=self.role, total_steps=options.steps)
        try:
            shared = SharedEngine(engine, recordings=run.recordings, shares_prefixes=section.enable_tree_training)
            self._train(run, shared, task)
            with publish_collectively(run.ranks, publish_folder(folder)) as writing:
                engine.save(writing, "hf")
        finally:
            engine.close()
        return folder

    def _train(self, run: RunContext, engine: SharedEngine, task: Task) -> None:
        options, label = self.options, self.name.replace("_", " ")
        seed = derive_seed(run.config.seed, self.name)
        cursor = DataCursor(len(task.train), options.batch_size or task.cursor.batch_size, seed)
        objective = Objective((NegativeLogLikelihood(),))
        run.progress.start(options.steps, label=label)
        for step in range(options.steps):
            records = [task.train[index] for index in cursor.indices(step)]
            row = supervised_step(engine, self.build_batch(task.encoder, records), objective)
            metrics = {f"{self.name}/{name}": value for name, value in row.items()}
            run.metrics.log(self.last_step + step + 1 - options.steps, metrics)
            run.progress.update(step + 1, n_tokens=int(row["tokens"]), loss=row["loss"])
            if run.ranks.any(run.stop.requested):
                raise KeyboardInterrupt(f"stopped in the {label}")
