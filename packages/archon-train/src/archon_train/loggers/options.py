"""The options of metrics loggers (``stats_logger``). Names and defaults are AReaL's. Imports no logger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archon_core.config.rules import number, one_of, option, path_or_id

DISABLED = "disabled"


@dataclass
class TensorBoardOptions:
    """TensorBoard files, which every run writes if the package is installed.

    Attributes:
        path: folder of the files; null for ``tensorboard`` in the run folder.
    """

    path: str | None = option(None, path_or_id)

    @property
    def is_used(self) -> bool:
        """See ``LoggerSpec``."""
        return True


@dataclass
class WandbOptions:
    """Weights & Biases.

    Attributes:
        mode: ``online``, ``offline`` (files in the run folder, for ``wandb sync``), ``shared`` or ``disabled``.
        wandb_base_url: address of a server; empty for the public one.
        wandb_api_key: key; empty for the environment variable WANDB_API_KEY or the key of ``wandb login``. The run
            folder keeps the configuration with it.
        entity: user or team; null for the user's default.
        project: project; null for ``experiment_name``.
        name: name of the run; null for ``trial_name``.
        job_type: kind of the run.
        group: group of runs; null for ``experiment_name`` and ``trial_name``, joined by an underscore.
        notes: a description.
        tags: labels.
        config: further entries beside the run's configuration, which is logged.
        id_suffix: end of the run's id, ``<experiment_name>_<trial_name>_<id_suffix>``, with which a resumed run
            continues its curves; null for a new id in every start.
    """

    mode: str = option(DISABLED, one_of("online", "offline", DISABLED, "shared"))
    wandb_base_url: str = ""
    wandb_api_key: str = ""
    entity: str | None = None
    project: str | None = None
    name: str | None = None
    job_type: str | None = None
    group: str | None = None
    notes: str | None = None
    tags: list[str] | None = None
    config: dict[str, Any] | None = None
    id_suffix: str | None = "train"

    @property
    def is_used(self) -> bool:
        """See ``LoggerSpec``."""
        return self.mode != DISABLED


@dataclass
class SwanlabOptions:
    """SwanLab.

    Attributes:
        mode: ``cloud``, ``local`` (files alone), ``offline`` (files to synchronise later) or ``disabled``.
        project: project; null for ``experiment_name``.
        name: name of the run; null for ``trial_name``.
        config: further entries beside the run's configuration, which is logged.
        logdir: folder of its files; null for ``swanlab`` in the run folder.
        api_key: key for ``cloud``; null for the environment variable SWANLAB_API_KEY or the key of ``swanlab login``.
            The run folder keeps the configuration with it.
    """

    mode: str = option(DISABLED, one_of("cloud", "local", DISABLED, "offline"))
    project: str | None = None
    name: str | None = None
    config: dict[str, Any] | None = None
    logdir: str | None = option(None, path_or_id)
    api_key: str | None = None

    @property
    def is_used(self) -> bool:
        """See ``LoggerSpec``."""
        return self.mode != DISABLED


@dataclass
class TrackioOptions:
    """Trackio.

    Attributes:
        mode: ``online`` (a Space of Hugging Face, with ``space_id``), ``local`` (a database on this machine, for
            ``trackio show``) or ``disabled``.
        project: project; null for ``experiment_name``.
        name: name of the run; null for ``trial_name``.
        space_id: Space of ``online``, ``user/space``; null keeps the numbers on this machine.
    """

    mode: str = option(DISABLED, one_of("online", "local", DISABLED))
    project: str | None = None
    name: str | None = None
    space_id: str | None = None

    @property
    def is_used(self) -> bool:
        """See ``LoggerSpec``."""
        return self.mode != DISABLED


@dataclass
class PrometheusOptions:
    """The latest numbers of a running trainer as text for Prometheus, at ``/metrics``. Not in AReaL.

    Attributes:
        port: port of the first rank's machine; 0 for a free one, which a line on the terminal names; null serves no
            metrics.
        host: address to listen on. Everyone who reaches it can read the numbers: there is no password. 127.0.0.1 is
            this machine alone; 0.0.0.0 is all networks.
    """

    port: int | None = option(None, number(least=0, most=65535))
    host: str = "127.0.0.1"

    @property
    def is_used(self) -> bool:
        """See ``LoggerSpec``."""
        return self.port is not None
