"""Plugin registration of archon-slurm. Imports no torch: targets are loaded on use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from archon_core.contracts.launching import LauncherSpec
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.contracts.spec import ConfigSection
from archon_core.plugins import CommandSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"

SCHEDULING = tuple(field.name for field in dataclasses.fields(SchedulingSpec))
"""Fields of ``scheduling_spec`` that jobs have: all."""


@hookimpl
def archon_launchers() -> Iterable[LauncherSpec]:
    return [
        LauncherSpec(
            name="slurm",
            target="archon_slurm.launcher:SlurmLauncher",
            summary="one SLURM job for the trainer and one for each inference server",
            scheduling=SCHEDULING,
            starts_servers=True,
            check="archon_slurm.checks:check_run",
            config=(ConfigSection("slurm", "archon_slurm.options:SlurmOptions"),),
        )
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="slurm",
            target="archon_slurm.cli:app",
            summary="Show, scale and cancel the SLURM jobs of a run.",
        )
    ]
