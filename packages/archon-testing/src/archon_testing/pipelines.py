"""Pipeline schedules of layouts and their numbers of stages. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.pipeline import PIPELINE
from archon_core.errors import UnknownNameError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import PipelineSpec, ScheduleSpec, TrainEngineSpec, registry
from archon_engine.options.archon import ArchonOptions
from archon_testing.cases import Case

OUR_ENGINE = "archon"
"""Only this engine uses archon-pipeline; other engines bring their own pipelines."""


def runnable_axes() -> str:
    """Letters of the axes that the installed Archon engine runs with a size above 1."""
    axes = registry().get(TrainEngineSpec, OUR_ENGINE).axes
    try:
        pipeline_schedule(None)
    except UnknownNameError:
        return axes.replace("p", "")
    return axes


def pipeline_schedule(name: str | None) -> ScheduleSpec:
    """The schedule called ``name``; the engine's default one for ``None``.

    Raises:
        UnknownNameError: no installed package has it, or runs schedules; with what to install.
    """
    schedule = registry().get(ScheduleSpec, name or ArchonOptions().pp_schedule)
    registry().get(PipelineSpec, PIPELINE)
    return schedule


def count_stages(schedule: ScheduleSpec, n_ranks: int) -> int:
    """The number of stages on ``n_ranks`` pipeline ranks."""
    return schedule.usual_stages_per_rank * n_ranks


def n_stages_of(case: Case) -> int:
    """The number of stages of a case's layout; 1 without a pipeline."""
    layout = parse_layout(case.layout, backends=backend_table(registry().all(TrainEngineSpec)))
    n_ranks = layout.dims["p"]
    if n_ranks == 1 or layout.backend != OUR_ENGINE:
        return n_ranks
    return count_stages(pipeline_schedule(case.schedule), n_ranks)
