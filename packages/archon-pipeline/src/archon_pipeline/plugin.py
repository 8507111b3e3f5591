"""Registers the schedules, the runner that executes them, and the command ``archon pipeline``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, PipelineSpec, ScheduleSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_schedules() -> Iterable[ScheduleSpec]:
    return [
        ScheduleSpec(
            name="GPipe",
            target="archon_pipeline.schedules.gpipe:gpipe",
            summary="all forward passes, then all backward passes (arXiv:1811.06965)",
        ),
        ScheduleSpec(
            name="1F1B",
            target="archon_pipeline.schedules.one_f_one_b:one_f_one_b",
            summary="one forward, one backward: as many activations as ranks (arXiv:2006.09503)",
        ),
        ScheduleSpec(
            name="Interleaved1F1B",
            aliases=("I1F1B",),
            target="archon_pipeline.schedules.interleaved:interleaved_1f1b",
            stages_per_rank=None,
            summary="1F1B over several stages per rank: a smaller bubble for more activations (arXiv:2104.04473)",
        ),
        ScheduleSpec(
            name="InterleavedZeroBubble",
            aliases=("IZB", "ZB1P"),
            target="archon_pipeline.schedules.interleaved_zero_bubble:interleaved_zero_bubble",
            stages_per_rank=None,
            splits_backward=True,
            summary="interleaved, with weight gradients where ranks would wait (arXiv:2401.10241)",
        ),
        ScheduleSpec(
            name="ZBVZeroBubble",
            aliases=("ZBV",),
            target="archon_pipeline.schedules.zbv:zbv",
            stages_per_rank=2,
            placement="v",
            splits_backward=True,
            summary="two stages per rank, down and up again: next to no bubble in 1F1B's memory (arXiv:2401.10241)",
        ),
    ]


@hookimpl
def archon_pipelines() -> Iterable[PipelineSpec]:
    return [
        PipelineSpec(
            name="pipeline",
            target="archon_pipeline.runner:PipelinedRunner",
            split="archon_pipeline.stage_split:split_into_stages",
            replay="archon_pipeline.simulator:replay",
            summary="cuts models into stages and executes schedules",
        )
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="pipeline",
            target="archon_pipeline.cli:pipeline",
            summary="Draw pipeline schedules: bubble, peak activations and sends, as planned or as run.",
        )
    ]
