"""A model on its own ranks, as the actor's ranks see it.

Passes begin at once and are finished later, so that the actor's ranks can work in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StepStats
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import RoleLink
from archon_rl.losses.objective import Objective
from archon_rl.trainer.role_requests import (
    INHERITED,
    BuildModel,
    ForwardPass,
    LoadModel,
    SaveModel,
    StageModel,
    TrainingSteps,
    WriteStaged,
    tensors_of,
)
from archon_train.run.context import RunContext
from archon_train.run.recordings import Recordings


@dataclass
class RemoteEngine:
    """Whole batches for an engine on other ranks; all ranks of the actor call the same methods.

    Attributes:
        role: the model's role.
        link: to its ranks.
        objective: the loss that the role's ranks minimise; ``None`` for a frozen model.
        passes: token fields that forward passes need beside the ids.
        recordings: collects what the engine records of its steps.
        decisions: of the engine.
    """

    role: str
    link: RoleLink
    objective: Objective | None = None
    passes: frozenset[str] = frozenset()
    recordings: Recordings = field(default_factory=Recordings)
    decisions: tuple[Decision, ...] = ()

    def begin_training(self, batch: Batch, *, n_minibatches: int, seed: int) -> Callable[[], list[StepStats]]:
        """Start an optimizer step per trained mini-batch of the whole ``batch``, with the model's objective.

        Args:
            batch: with the token fields of the objective.
            n_minibatches: as of ``minibatches.train_minibatches``.
            seed: likewise.

        Returns:
            A function that waits for the results.
        """
        assert self.objective is not None, f"the {self.role} is frozen"
        request = TrainingSteps(self.role, batch.lengths, n_minibatches, seed)
        number = self.link.request(request, tensors_of(batch, self.objective.fields | self.passes))

        def finish() -> list[StepStats]:
            found: list[StepStats] = self.link.answer(number).content
            for stats in found:
                self.recordings.take(stats.recordings)
            return found

        return finish

    def begin_forward(self, batch: Batch, request: OutputRequest) -> Callable[[], dict[OutputName, Tensor]]:
        """Start a forward pass of the whole ``batch``.

        Returns:
            A function that waits for the outputs [T], on the CPU of every rank.
        """
        fields = self.passes if request.where is None else self.passes | {request.where}
        number = self.link.request(ForwardPass(self.role, batch.lengths, request), tensors_of(batch, fields))
        return lambda: cast("dict[OutputName, Tensor]", dict(self.link.answer(number).tensors))

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """As ``TrainEngine.save``."""
        self.link.ask(SaveModel(self.role, path, format))

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """As ``TrainEngine.load``."""
        self.decisions = self.link.ask(LoadModel(self.role, path, format)).content

    def stage(self) -> RemoteState:
        """As ``TrainEngine.stage``: the copy stays with the role's ranks."""
        self.link.ask(StageModel(self.role))
        assert self.link.background is not None, "a link of a role has one for the background"
        return RemoteState(self.role, self.link.background)


@dataclass(frozen=True)
class RemoteState:
    """The copy of a training state on a role's ranks; implements ``contracts.engine.StagedState``.

    Attributes:
        role: the model's role.
        link: to the background threads of its ranks.
    """

    role: str
    link: RoleLink

    def write(self, folder: Path, ranks: Ranks) -> None:
        """Have the role's ranks write the ``dcp`` folder."""
        self.link.ask(WriteStaged(self.role, folder))


def begin_remote_engine(
    run: RunContext, section: Any, *, role: str, objective: Objective | None, total_steps: int | None
) -> Callable[[], RemoteEngine]:
    """Have the ranks of ``role`` build its engine.

    Args:
        run: the run, which has a link to these ranks.
        section: the complete section of the model.
        role: the role.
        objective: its loss; ``None`` for a frozen model.
        total_steps: optimizer steps of the run.

    Returns:
        A function that waits for the engine, and adds the engine's decisions to those of the run.
    """
    replays = getattr(getattr(section, "archon", None), "moe_routing_replay", False)
    passes = frozenset({ROUTED_EXPERTS} if replays else ())
    engine = RemoteEngine(role, run.links[role], objective, passes, run.recordings)
    number = engine.link.request(BuildModel(role, {name: getattr(section, name) for name in INHERITED}, total_steps))

    def finish() -> RemoteEngine:
        engine.decisions = engine.link.answer(number).content
        run.record(engine.decisions)
        return engine

    return finish
