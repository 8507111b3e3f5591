"""Runs the training of ``archon train`` in one process: the only one, or one rank of several."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from archon_core.cli.console import print_remark
from archon_core.config.loading import LoadedConfig, to_yaml
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.contracts.loggers import LoggedRun
from archon_core.errors import ArchonError, ConfigError
from archon_core.plugins import AlgorithmSpec, registry
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import ending
from archon_core.ranks.role_ranks import ACTOR, RoleRanks, ranks_of
from archon_train.cli.plan_report import print_decisions
from archon_train.cli.role_process import end_roles, serve_role, start_roles
from archon_train.launch.rank import started_by_archon
from archon_train.launch.world import hide_gpus
from archon_train.run.changes import changes_since_start
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import SAME_SIGNAL_SECONDS, StopSignal

if TYPE_CHECKING:
    from archon_engine.distributed.process_group import JoinedRanks
    from archon_train.experiment import ExperimentConfig


@dataclass(frozen=True)
class OpenRun:
    """An open run folder.

    Attributes:
        folder: the run folder; the first rank holds its lock.
        resumed: whether the run continues from a checkpoint.
        decisions: recorded so far.
    """

    folder: RunFolder
    resumed: bool
    decisions: list[Decision]


def run_training(
    loaded: LoadedConfig,
    *,
    resume_command: str,
    place: RankEnvironment | None = None,
    trainer: Sequence[RoleRanks] = (),
    restart: bool = False,
) -> int:
    """Train to the end, or until the user stops the run; returns the exit code.

    Args:
        loaded: a configuration whose plan can run.
        resume_command: shown to a user who interrupts the run.
        place: the rank's environment; ``None`` for a run of one process.
        trainer: all ranks by role.
        restart: rename the folder of an earlier run of this name first.

    Raises:
        ArchonError: from the trainer.
    """
    if loaded.config.cluster.n_gpus_per_node == 0:
        hide_gpus()
    stop = StopSignal() if place is None else _rank_stop(place)
    run: OpenRun | None = None
    is_first = place is None or place.rank == 0
    decisions: list[Decision] = []
    role = ACTOR if place is None or not trainer else ranks_of(place.rank, trainer).role
    try:
        if role != ACTOR:
            with stop, _joined(place, loaded.config, trainer, decisions) as joined:
                return serve_role(loaded, role, joined, stop)
        with (
            stop,
            _joined(place, loaded.config, trainer, decisions) as joined,
            ending(joined.links),
            open_run(loaded, joined.ranks, restart=restart, decisions=decisions) as run,
        ):
            ranks = joined.ranks
            config = replace(
                loaded.config, trainer=replace(loaded.config.trainer, resume=run.resumed, auto_resume=False)
            )
            if is_first:
                run.folder.write_config(to_yaml(config))
                run.folder.write_decisions(run.decisions)
                print_remark(str(run.folder.path), label="run folder: ", style="bold")
            with _start_recorded(run, stop) if is_first else nullcontext():
                try:
                    start_roles(joined.links, run.resumed)
                    _fit(config, run, loaded.explicit, stop, joined)
                    code = next((code for code in ranks.gather(stop.exit_code) if code), 0)
                    end_roles(joined.links, code)
                except KeyboardInterrupt:
                    if not stop.insisted:  # the second signal may have come within a message
                        end_roles(joined.links, stop.exit_code or 128 + signal.SIGINT)
                    raise
                finally:
                    if is_first:
                        run.folder.write_decisions(run.decisions)
    except KeyboardInterrupt:
        if not stop.requested:  # otherwise the first signal determines the exit code
            stop.request()
        code = stop.exit_code
    if code and is_first and run is not None:
        print_remark(explain_interruption(run.folder, resume_command), label="interrupted: ", style="bold yellow")
    return code


def _start_recorded(run: OpenRun, stop: StopSignal) -> AbstractContextManager[None]:
    from archon_train.run.starts import recorded_start

    step = run.folder.latest_step() if run.resumed else None
    return recorded_start(run.folder.path, resumed_from=step, interrupted=lambda: bool(stop.exit_code))


def _rank_stop(place: RankEnvironment) -> StopSignal:
    if not started_by_archon():
        return StopSignal(announce=place.rank == 0, same_within=SAME_SIGNAL_SECONDS)
    # Archon's launchers answer the user, since a rank may be in a long collective, and kill ranks that must end at
    # once. A repeated signal means nothing: SLURM's may come long after the same one by way of another machine.
    return StopSignal(announce=False, same_within=math.inf)


def _joined(
    place: RankEnvironment | None,
    config: ExperimentConfig,
    trainer: Sequence[RoleRanks],
    decisions: list[Decision],
) -> AbstractContextManager[JoinedRanks]:
    if _any_engine_sets("use_deterministic_algorithms", config):
        from archon_engine.distributed.determinism import set_deterministic

        set_deterministic()  # no process group may be there before it
    from archon_engine.distributed.process_group import JoinedRanks, process_group

    return nullcontext(JoinedRanks(Ranks())) if place is None else process_group(place, trainer, decisions=decisions)


def _any_engine_sets(option: str, config: ExperimentConfig) -> bool:
    """Whether an option of the Archon engine is true for one of the models; other engines do not have the option."""
    sections = (getattr(getattr(config, role), "archon", None) for role in ROLES)
    return any(getattr(section, option, False) for section in sections)


@contextmanager
def open_run(
    loaded: LoadedConfig, ranks: Ranks, *, restart: bool = False, decisions: Sequence[Decision] = ()
) -> Iterator[OpenRun]:
    """Open the run folder on the first rank, and broadcast the result.

    Args:
        loaded: the configuration.
        ranks: all ranks.
        restart: rename the folder of an earlier run of this name first.
        decisions: of the first rank, to record.

    Raises:
        ArchonError: on every rank, when the first cannot open it; see ``open_folder``.
    """
    with ExitStack() as stack:
        opened: OpenRun | ArchonError | None = None
        if ranks.is_first:
            try:
                if restart:
                    set_aside(loaded.config)
                opened = stack.enter_context(open_folder(loaded))
                if opened.resumed:
                    _record_changes(loaded, opened)
                opened.decisions.extend(decisions)
                print_decisions(opened.decisions[len(loaded.decisions) :])
            except ArchonError as error:
                opened = error
        opened = ranks.broadcast(opened)
        if isinstance(opened, ArchonError):
            raise opened
        assert opened is not None
        yield opened


def _record_changes(loaded: LoadedConfig, run: OpenRun) -> None:
    trainer = replace(loaded.config.trainer, resume=True, auto_resume=False)
    run.decisions.extend(changes_since_start(run.folder, to_yaml(replace(loaded.config, trainer=trainer))))


@contextmanager
def open_folder(loaded: LoadedConfig) -> Iterator[OpenRun]:
    """Hold the run folder until the block ends.

    Raises:
        ConfigError: the folder holds another run and this one does not resume it, there is nothing to resume, or
            another process is writing it.
    """
    config: ExperimentConfig = loaded.config
    decisions = list(loaded.decisions)
    asked = config.trainer.resume or config.trainer.auto_resume
    place = (config.cluster.fileroot, config.experiment_name, config.trial_name)
    if config.trainer.resume and not RunFolder.at(*place).path.is_dir():
        raise ConfigError(
            f"trainer.resume: found no run in {RunFolder.at(*place).path}; remove --resume to start one, or set "
            "cluster.fileroot, experiment_name and trial_name to those of the run to continue"
        )
    with RunFolder.hold(*place, resume=asked) as folder:
        resumed = asked and folder.latest_step() is not None
        if config.trainer.resume and not resumed:
            reason = "the run stopped before its first checkpoint, so it starts over"
            decisions.append(Decision("trainer.resume", "true", "false", reason))
        elif config.trainer.auto_resume:
            found = f"step {folder.latest_step()}" if resumed else "no checkpoint"
            decisions.append(Decision("trainer.auto_resume", "true", f"resume={resumed}".lower(), f"found {found}"))
        yield OpenRun(folder, resumed, decisions)


def set_aside(config: ExperimentConfig) -> None:
    """Rename the folder of an earlier run of this name, for ``--restart``.

    Raises:
        ConfigError: the run is to be resumed too, or another process is writing it.
    """
    if config.trainer.resume:
        raise ConfigError("--restart: found trainer.resume=true as well; allowed is one of the two; remove one")
    folder = RunFolder.at(config.cluster.fileroot, config.experiment_name, config.trial_name)
    aside = folder.set_aside()
    if aside is not None:
        print_remark(str(aside), label="earlier run set aside: ", style="bold")


def explain_interruption(folder: RunFolder, resume_command: str) -> str:
    """The last checkpoint of an interrupted run, and the command to continue it."""
    step = folder.latest_step()
    if step is None:
        return f"there is no checkpoint yet (see trainer.save_every); to start over: {resume_command}"
    return f"the last checkpoint is {folder.checkpoint_path(step)}; to continue from step {step}: {resume_command}"


def _fit(config: Any, run: OpenRun, explicit: frozenset[str], stop: StopSignal, joined: JoinedRanks) -> None:
    # These import numpy, TensorBoard and the trainer: seconds that a dry run does not need.
    from archon_train.loggers.opening import open_loggers
    from archon_train.run.context import RunContext
    from archon_train.run.log import shown_log
    from archon_train.run.metrics import MetricsLog, NoMetrics
    from archon_train.run.progress import NoProgress, Progress
    from archon_train.run.recordings import Recordings

    spec, ranks = registry().get(AlgorithmSpec, config.algorithm), joined.ranks
    trainer, algorithm = spec.load_trainer(), spec.load()
    with ExitStack() as stack:
        if ranks.is_first:
            step = run.folder.latest_step() if run.resumed else None
            progress = stack.enter_context(Progress())
            stack.enter_context(shown_log(progress.note))
            logged = LoggedRun(config.experiment_name, config.trial_name, run.folder.path, asdict(config), step)
            loggers = dict(open_loggers(config, registry(), logged, run.decisions))
            metrics = MetricsLog(run.folder, resume_step=step, loggers=loggers, note=progress.note)
            stack.enter_context(metrics)
            recordings = Recordings(run.folder.path, progress.note)
        else:
            metrics, progress, recordings = NoMetrics(), NoProgress(), Recordings()
            if started_by_archon():  # each rank has its own log file
                stack.enter_context(shown_log(print))
                recordings = Recordings(note=print)
        context = RunContext(
            config=config,
            folder=run.folder,
            metrics=metrics,
            progress=progress,
            stop=stop,
            decisions=run.decisions,
            explicit=explicit,
            ranks=ranks,
            recordings=recordings,
            links=joined.links,
        )
        trainer(context, algorithm).fit()
