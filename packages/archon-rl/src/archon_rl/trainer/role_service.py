"""The loop of a role's own ranks: they build models and answer the requests of the actor's ranks, one after another.

All ranks of the role get each request and carry it out together; the first one answers. Checkpoints in the background
come over a second link, which a thread serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from archon_core.contracts.engine import StagedState
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import RoleLink, RoleMessage, RunEnd
from archon_core.ranks.role_ranks import ACTOR
from archon_rl.algorithm import Algorithm
from archon_rl.trainer.checkpointing import with_resume_advice
from archon_rl.trainer.engines import build_model_beside
from archon_rl.trainer.minibatches import train_minibatches
from archon_rl.trainer.role_requests import (
    BeginProfile,
    BuildModel,
    EndProfile,
    ForwardPass,
    LoadModel,
    SaveModel,
    StageModel,
    TrainingSteps,
    WriteStaged,
    batch_of,
)
from archon_rl.trainer.sharing import SharedEngine
from archon_train.run.context import RunContext
from archon_train.run.step_profiler import StepProfiler


def serve_models(run: RunContext, algorithm: Algorithm) -> None:
    """Answer requests until the run of the actor's ranks ends. Collective over the ranks of the role.

    Raises:
        KeyboardInterrupt: the user stopped the run.
        ArchonError: the actor's ranks failed, with their error; or an engine of these ranks did.
    """
    with ExitStack() as stack:
        service = _Service(run, algorithm, run.links[ACTOR], stack)
        while True:
            message = service.link.next_request()
            if isinstance(message.content, RunEnd):
                message.content.raise_error()
                return
            service.carry_out(message)


@dataclass
class _Service:
    """Carries out requests.

    Attributes:
        run: the run, on a rank of the role.
        algorithm: has the objectives of the models.
        link: to the actor's ranks.
        stack: closes the engines.
        engines: role -> engine.
    """

    run: RunContext
    algorithm: Algorithm
    link: RoleLink
    stack: ExitStack
    engines: dict[str, SharedEngine] = field(default_factory=dict)
    _staged: dict[str, StagedState] = field(default_factory=dict)
    _apart: Ranks | None = None
    _profile: ExitStack = field(default_factory=ExitStack)

    def carry_out(self, message: RoleMessage) -> None:
        """Carry out a request and answer it, with its error if it fails."""
        request = message.content
        with self.link.replying_errors():
            content, tensors = _ACTIONS[type(request)](self, request, message)
        self.link.reply(content, tensors)

    def build(self, request: BuildModel, message: RoleMessage) -> Answer:
        section = replace(getattr(self.run.config, request.role), **request.options)
        if request.total_steps is None:
            section = replace(section, optimizer=None)
        shared = build_model_beside(self.run, section, role=request.role, total_steps=request.total_steps)
        self.stack.callback(shared.engine.close)
        self.engines[request.role] = shared
        return tuple(shared.decisions), {}

    def forward(self, request: ForwardPass, message: RoleMessage) -> Answer:
        batch = batch_of(request.lengths, message.tensors)
        return None, self.engines[request.role].forward_batch(batch, request.request)

    def train(self, request: TrainingSteps, message: RoleMessage) -> Answer:
        batch = batch_of(request.lengths, message.tensors)
        engine, objective = self.engines[request.role], self.algorithm.objectives[request.role]
        split = {"n_minibatches": request.n_minibatches, "seed": request.seed}
        return train_minibatches(engine, batch, objective, **split), {}

    def begin_profile(self, request: BeginProfile, message: RoleMessage) -> Answer:
        profiler = StepProfiler.of(self.run, first_rank=self.link.first)
        engines = [shared.engine for shared in self.engines.values()]
        self._profile.enter_context(profiler(request.step, engines))
        return None, {}

    def end_profile(self, request: EndProfile, message: RoleMessage) -> Answer:
        self._profile.close()
        return None, {}

    def save(self, request: SaveModel, message: RoleMessage) -> Answer:
        self.engines[request.role].save(request.path, request.format)
        return None, {}

    def load(self, request: LoadModel, message: RoleMessage) -> Answer:
        engine = self.engines[request.role]
        with with_resume_advice(request.path.parents[1]):
            engine.load(request.path, request.format)
        return tuple(engine.decisions), {}

    def stage(self, request: StageModel, message: RoleMessage) -> Answer:
        if self._apart is None:
            self._apart = self.run.ranks.apart()
            threading.Thread(target=self._serve_background, name="archon-checkpoint", daemon=True).start()
        self._staged[request.role] = self.engines[request.role].stage()
        return None, {}

    def _serve_background(self) -> None:
        """Write staged states, until the process ends."""
        link, ranks = self.link.background, self._apart
        assert link is not None
        assert ranks is not None
        while True:
            try:
                request = link.next_request().content
            except (RuntimeError, OSError):
                return  # the actor's ranks have ended, which the main thread notices, too
            assert isinstance(request, WriteStaged)
            with link.replying_errors():
                self._staged[request.role].write(request.path, ranks)
            link.reply(None)


Answer = tuple[Any, Mapping[Any, Any]]

_ACTIONS: Mapping[type, Callable[[_Service, Any, RoleMessage], Answer]] = {
    BuildModel: _Service.build,
    ForwardPass: _Service.forward,
    TrainingSteps: _Service.train,
    BeginProfile: _Service.begin_profile,
    EndProfile: _Service.end_profile,
    SaveModel: _Service.save,
    LoadModel: _Service.load,
    StageModel: _Service.stage,
}
