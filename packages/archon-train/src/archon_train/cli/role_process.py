"""The process of a role on its own ranks: it waits for the actor's ranks to open the run, then answers requests."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archon_core.config.loading import LoadedConfig
from archon_core.plugins import AlgorithmSpec, registry
from archon_core.ranks.role_link import RoleLink, RunEnd, distinct
from archon_core.ranks.role_ranks import ACTOR
from archon_train.launch.rank import started_by_archon
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import StopSignal

if TYPE_CHECKING:
    from archon_engine.distributed.process_group import JoinedRanks


@dataclass(frozen=True)
class RunStart:
    """The first request: the run folder is open.

    Attributes:
        resumed: whether the run continues from a checkpoint.
    """

    resumed: bool


def start_roles(links: Mapping[str, RoleLink], resumed: bool) -> None:
    """Let the ranks of all roles begin. For the actor's ranks."""
    for link in distinct(links):
        link.tell(RunStart(resumed))


def end_roles(links: Mapping[str, RoleLink], code: int) -> None:
    """Let the ranks of all roles end with the run. For the actor's ranks.

    Args:
        code: exit code; 0 unless a signal stopped the run.
    """
    for link in distinct(links):
        link.tell(RunEnd(code))


def serve_role(loaded: LoadedConfig, role: str, joined: JoinedRanks, stop: StopSignal) -> int:
    """Answer the requests of the actor's ranks until the run ends; returns the exit code.

    Args:
        loaded: the run's configuration.
        role: whose ranks these are.
        joined: the processes.
        stop: the user's request to stop; the actor's ranks decide when the run stops.

    Raises:
        ArchonError: from the actor's ranks, or from this rank's engines.
        KeyboardInterrupt: the user stopped the run.
    """
    from archon_train.run.context import RunContext
    from archon_train.run.log import shown_log
    from archon_train.run.metrics import NoMetrics
    from archon_train.run.progress import NoProgress
    from archon_train.run.recordings import Recordings

    link, config = joined.links[ACTOR], loaded.config
    start = link.next_request().content
    if isinstance(start, RunEnd):
        start.raise_error()
        return start.code
    assert isinstance(start, RunStart)
    config = replace(config, trainer=replace(config.trainer, resume=start.resumed, auto_resume=False))
    with ExitStack() as stack:
        if started_by_archon():  # each rank has its own log file
            stack.enter_context(shown_log(print))
        context = RunContext(
            config=config,
            folder=RunFolder.at(config.cluster.fileroot, config.experiment_name, config.trial_name),
            metrics=NoMetrics(),
            progress=NoProgress(),
            stop=stop,
            decisions=[],
            explicit=loaded.explicit,
            ranks=joined.ranks,
            recordings=Recordings(),
            role=role,
            links=joined.links,
        )
        spec = registry().get(AlgorithmSpec, config.algorithm)
        trainer = spec.load_trainer()(context, spec.load())
        trainer.fit()
    return 0
