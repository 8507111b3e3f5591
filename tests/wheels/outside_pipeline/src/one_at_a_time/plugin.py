"""The entry point: one schedule, and what runs it."""

from archon_core.plugins import PipelineSpec, ScheduleSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_schedules():
    return [ScheduleSpec(name="OneAtATime", target="one_at_a_time.schedule:rank_actions")]


@hookimpl
def archon_pipelines():
    return [
        PipelineSpec(
            name="pipeline", target="one_at_a_time.runner:OneAtATime", split="one_at_a_time.schedule:split_evenly"
        )
    ]
