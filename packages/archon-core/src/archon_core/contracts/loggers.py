"""Contracts of metrics loggers: programs in which a run's numbers can be looked at while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec


@dataclass(frozen=True)
class LoggerSpec(Spec):
    """A metrics logger. ``target`` names a ``MetricsLoggerFactory``; ``config`` has one section, its options.

    Every installed logger is available; its options decide whether a run uses it. Their dataclass has a property
    ``is_used: bool``.

    Attributes:
        modules: the modules that it imports, each with what pip installs: ``(("wandb", "wandb"),)``.
        optional: whether a run goes on without it if a module is missing, with a decision; otherwise, that is an error
            before the run starts.
        off: how its options switch it off, such as ``mode=disabled``; empty for a logger that is always used.
    """

    kind: ClassVar[str] = "logger"
    hook: ClassVar[str] = "archon_loggers"

    modules: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    off: str = ""

    @property
    def section(self) -> str:
        """Dotted name of its options."""
        (section,) = self.config
        return section.path


@dataclass(frozen=True)
class LoggedRun:
    """The run whose numbers are logged.

    Attributes:
        experiment: ``experiment_name``.
        trial: ``trial_name``.
        folder: the run folder.
        config: the resolved configuration, as plain data.
        resume_step: step of the checkpoint from which the run continues; ``None`` for a new run. Steps after it are
            logged again.
    """

    experiment: str
    trial: str
    folder: Path
    config: Mapping[str, Any]
    resume_step: int | None = None


class MetricsLogger(Protocol):
    """Gets the numbers of a run, on its first rank."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers.

        Args:
            step: optimizer steps done; never goes back, and several calls may have the same.
            values: name -> number, which may be NaN or infinite.
        """

    def close(self) -> None:
        """Write what is left. Called once."""


class MetricsLoggerFactory(Protocol):
    """``target`` of a ``LoggerSpec``."""

    def __call__(self, options: Any, run: LoggedRun) -> MetricsLogger:
        """Open the logger.

        Args:
            options: its section of the configuration.
            run: the run.
        """
