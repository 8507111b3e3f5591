"""The measured step of a pipeline, beside the same actions without delays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, TimedActions
from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError
from archon_core.page.charts import draw_pipeline, end_of
from archon_core.page.parts import remark
from archon_core.plugins import registry
from archon_core.run_files.pipeline import RecordedStep


def draw_timelines(recordings: Mapping[str, RecordedStep]) -> Iterator[str]:
    """The timelines of all roles. The planned and the measured one of a step have the same scale."""
    for role, recorded in recordings.items():
        number = recorded.n_micro_batches
        yield (
            f"<h4>{escape(role)}: {escape(recorded.schedule)}, optimizer step {recorded.step}, "
            f"{number} micro-{'batch' if number == 1 else 'batches'}</h4>"
        )
        planned = replay(recorded)
        measured = _in_milliseconds(recorded.ranks)
        scale = end_of(measured)
        if isinstance(planned, str):
            yield remark(planned)
        else:
            drawn = _in_milliseconds(planned)
            scale = max(scale, end_of(drawn))
            yield remark(f"Planned, with the mean measured time of each kind of action: {_numbers(planned)}.")
            yield draw_pipeline(drawn, recorded.rank_of, "ms", scale=scale)
        yield remark(f"Measured: {_numbers(recorded.ranks)}.")
        yield draw_pipeline(measured, recorded.rank_of, "ms", scale=scale)


def replay(recorded: RecordedStep) -> TimedActions | str:
    """The actions as they would run if every one took its mean time; a sentence if they cannot be replayed."""
    specs = {spec.name: spec for spec in registry().all(PipelineSpec)}
    if PIPELINE not in specs or not specs[PIPELINE].replay:
        return "The planned timeline needs archon-pipeline: pip install archon-pipeline."
    spec = specs[PIPELINE]
    actions = tuple(tuple(action for action, _, _ in rank) for rank in recorded.ranks)
    try:
        return load_target(spec.replay, origin=registry().origin(spec))(
            actions, recorded.rank_of, recorded.mean_times()
        )
    except ArchonError as error:
        return f"The planned timeline cannot be drawn: {error}."


def _numbers(timed: TimedActions) -> str:
    end = end_of(timed)
    busy = sum(stop - start for rank in timed for _, start, stop in rank)
    bubble = (len(timed) * end - busy) / busy if busy else 0.0
    return f"{1000 * end:.1f} ms, bubble {bubble:.0%} of the work"


def _in_milliseconds(timed: TimedActions) -> TimedActions:
    return tuple(tuple((action, 1e3 * start, 1e3 * stop) for action, start, stop in rank) for rank in timed)
