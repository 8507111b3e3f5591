"""Supervised warm start before reinforcement learning or learning from preferences.

It runs on a separate engine with its own learning rate and optimizer state, and writes a checkpoint to the run folder.
The actor starts from that checkpoint, and so does the reference unless it names another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core.contracts.batch import Batch
from archon_core.seeding import derive_seed
from archon_engine.checkpoint.publication import publish_folder
from archon_rl.datasets.cursor import DataCursor
from archon_rl.losses.objective import Objective
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.text_encoding import supervised_batch
from archon_rl.trainer.checkpointing import resumed_checkpoint
from archon_rl.trainer.engines import build_train_engine
from archon_rl.trainer.sft import supervised_step
from archon_rl.trainer.sharing import SharedEngine, publish_collectively
from archon_rl.trainer.task import Task
from archon_train.run.context import RunContext

WARMUP_PROPORTION = 0.1

BatchBuilder = Callable[[Any, Sequence[Mapping[str, Any]]], Batch]
"""(encoder, records) -> the batch of a supervised step."""


def warm_start(run: RunContext, actor: Any, task: Task, build_batch: BatchBuilder = supervised_batch) -> Path | None:
    """Run the ``warm_start`` steps on ``actor``; return the checkpoint, or ``None`` for no steps.

    A resumed run returns the existing checkpoint. Metrics are logged under ``warm_start/`` at the steps ``1 - n`` to 0,
    so that step 1 is the first step of the training that follows.

    Raises:
        KeyboardInterrupt: the user asked to stop; nothing is kept, and the next run starts over.
    """
    options, folder = run.config.warm_start, run.folder.path / "warm_start"
    if options.steps == 0:
        return None
    if resumed_checkpoint(run) is not None:
        return folder
    optimizer = replace(
        actor.optimizer, lr=options.lr, lr_scheduler_type="linear", warmup_steps_proportion=WARMUP_PROPORTION
    )
    # Groups of sequences belong to the training that follows; here any batch size is right.
    section = replace(actor, optimizer=optimizer, mb_spec=replace(actor.mb_spec, granularity=1))
    engine = build_train_engine(run, section, role="actor", total_steps=options.steps)
    shared = SharedEngine(engine, recordings=run.recordings)
    cursor = DataCursor(
        len(task.train), options.batch_size or task.cursor.batch_size, derive_seed(run.config.seed, "warm_start")
    )
    objective = Objective((NegativeLogLikelihood(),))
    run.progress.start(options.steps, label="warm start")
    try:
        for step in range(options.steps):
            records = [task.train[index] for index in cursor.indices(step)]
            row = supervised_step(shared, build_batch(task.encoder, records), objective)
            run.metrics.log(step + 1 - options.steps, {f"warm_start/{name}": value for name, value in row.items()})
            run.progress.update(step + 1, n_tokens=int(row["tokens"]), loss=row["loss"])
            if run.ranks.any(run.stop.requested):
                raise KeyboardInterrupt("stopped in the warm start")
        with publish_collectively(run.ranks, publish_folder(folder)) as writing:
            engine.save(writing, "hf")
    finally:
        engine.close()
    return folder
