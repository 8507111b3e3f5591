"""Profiles single training steps of a run, every rank to files in ``profile/step-<number>/`` of the run folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archon_core.contracts.engine import RecordsSteps
from archon_core.errors import ConfigError
from archon_engine.profiling.ranges import profiled_range
from archon_engine.profiling.recording import memory_history, traced
from archon_train.profile_plan import RANGE, ProfilePlan
from archon_train.run.context import RunContext

logger = logging.getLogger(__name__)

FOLDER = "profile"


@dataclass(frozen=True)
class StepProfiler:
    """Profiles the planned steps on this rank.

    Attributes:
        run: the run folder.
        plan: which steps.
        rank: of this process, among all ranks of the run.
    """

    run: Path
    plan: ProfilePlan
    rank: int

    @classmethod
    def of(cls, run: RunContext, *, first_rank: int = 0) -> StepProfiler:
        """The profiler of a run.

        Args:
            run: the run, on this rank.
            first_rank: first of the ranks of this process's role among all ranks.
        """
        return cls(run.folder.path, ProfilePlan.of(run.config), first_rank + run.ranks.rank)

    def covers(self, step: int) -> bool:
        """Whether ``step``, counted from 1, is profiled."""
        return step in self.plan.steps

    def folder(self, step: int) -> Path:
        """The folder of a step's files."""
        return self.run / FOLDER / f"step-{step:06d}"

    def clear(self, step: int) -> None:
        """Remove the files of an earlier start of the run, for the first rank of all."""
        shutil.rmtree(self.folder(step), ignore_errors=True)

    @contextmanager
    def __call__(self, step: int, engines: Sequence[Any]) -> Iterator[None]:
        """Profile the block, which runs ``step``. A profile that cannot be written does not end the run.

        Args:
            step: number of the step, from 1.
            engines: engines of this process, which may record more than the trace has.
        """
        folder, name, plan = self.folder(step), f"rank-{self.rank}", self.plan
        with _reporting(step):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if step in plan.memory_steps and torch.cuda.is_available():
                stack.enter_context(memory_history(folder / f"{name}.memory.pickle", plan.memory_entries))
            if step in plan.trace_steps:
                for engine in engines:
                    if isinstance(engine, RecordsSteps):
                        engine.record_next(f"{FOLDER}/{folder.name}")
                        stack.callback(engine.record_next, None)  # a step may have no update
                stack.enter_context(traced(folder / f"{name}.trace.json.gz"))
                stack.enter_context(profiled_range("step", step))
            yield
            # Not around the block: an error of the step must reach the trainer.
            with _reporting(step):
                stack.close()


def check_profiled_steps(run: RunContext, *, done: int, total_steps: int) -> None:
    """Record the decisions about the profiled steps.

    Args:
        run: the run.
        done: steps before this start of the run.
        total_steps: steps of the whole run.

    Raises:
        ConfigError: the range of steps does not fit into the run.
    """
    plan = ProfilePlan.of(run.config)
    problem = plan.problem(total_steps)
    if problem is not None:
        raise ConfigError(f"{RANGE}: {problem}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run.record(plan.decisions(done=done, total_steps=total_steps, device=device))


@contextmanager
def _reporting(step: int) -> Iterator[None]:
    """Log an error of the disk, and continue."""
    try:
        yield
    except OSError as error:
        logger.warning("step %d has no profile: %s; check disk space and permissions", step, error)
