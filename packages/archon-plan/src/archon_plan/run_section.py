"""The section of the HTML page about an RL run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from archon_core.page.charts import Span, draw_axis, draw_columns, draw_lane, draw_table
from archon_core.page.parts import list_of_bars, paragraph, remark, tiles
from archon_plan.numbers import count, percent, seconds
from archon_plan.rl import RLPlan
from archon_plan.rl_report import describe_samples, describe_servers, parts_of_step
from archon_plan.splits import Split

N_STEPS = 6
"""Steps of a run that its timeline shows."""

BATCH_COLOURS = ("#3168ac", "#be5e00", "#0c7a68", "#6c4a96")

MOST_SPLITS = 10


def run_section(plan: RLPlan, splits: Sequence[Split]) -> Iterator[str]:
    """The section: its parts in order.

    Args:
        plan: of the run.
        splits: divisions of its devices, the fastest first.
    """
    run, pace = plan.run, plan.pace
    yield "<h2>The run</h2>"
    yield paragraph(f"{describe_samples(plan)}; {describe_servers(plan)}; staleness up to {run.staleness}.")
    yield tiles(
        {
            "steps per hour": f"{plan.steps_per_hour:,.1f}",
            "step": seconds(pace.seconds),
            "the trainer waits": percent(pace.trainer_waits),
            "places of servers empty": percent(pace.servers_wait),
            "limit": plan.limit,
            "sampled tokens/s": count(run.samples.sequences * run.samples.lengths.mean / pace.seconds),
        }
    )
    yield "<h3>Parts of a step</h3>"
    yield list_of_bars((name, value, seconds(value)) for name, value, _ in parts_of_step(plan))
    yield "<h3>First steps</h3>"
    yield remark("One colour per batch. The trainer's lane includes publications.")
    yield from _lanes(plan)
    if len(plan.paces) > 1:
        yield "<h3>Steps per hour by bound of staleness</h3>"
        rates = {str(bound): 3600 / one.seconds for bound, one in plan.paces.items()}
        yield draw_columns(rates, {name: f"{rate:,.1f}" for name, rate in rates.items()}, marked=str(run.staleness))
    if splits:
        yield from _splits(plan, splits)


def _lanes(plan: RLPlan) -> Iterator[str]:
    steps = plan.timeline(N_STEPS)
    end = steps[-1].published
    sampled, trained = [], []
    busy = 0.0
    for number, step in enumerate(steps):
        colour = BATCH_COLOURS[number % len(BATCH_COLOURS)]
        # Batches overlap on the servers: each is drawn from where the one before has ended.
        if step.complete > busy and step.begun < end:
            text = f"batch {number} is sampled"
            sampled.append(Span(colour, max(step.begun, busy), min(step.complete, end), text))
        busy = max(busy, step.complete)
        trained.append(Span(colour, step.taken, step.published, f"step {number} trains on batch {number}"))
    yield draw_lane("sampling" if plan.run.colocated else "servers", sampled, 0.0, end)
    yield draw_lane("training" if plan.run.colocated else "trainer", trained, 0.0, end)
    yield draw_axis(0.0, end, "s")


def _splits(plan: RLPlan, splits: Sequence[Split]) -> Iterator[str]:
    yield "<h3>How many devices should sample</h3>"
    total = splits[0].trainer + splits[0].servers
    yield remark(f"Steps per hour on {total} devices, by the number that samples; the rest trains.")
    shown = sorted(splits[:MOST_SPLITS], key=lambda split: split.servers)
    rows = [
        (
            f"{split.servers} sample, {split.trainer} train",
            split.layout,
            f"{split.plan.steps_per_hour:,.1f}",
            seconds(split.plan.step_seconds),
            percent(split.plan.pace.trainer_waits),
            percent(split.plan.pace.servers_wait),
            split.plan.limit,
        )
        for split in shown
    ]
    head = ("devices", "layout", "steps/h", "step", "trainer waits", "places empty", "limit")
    yield draw_table(head, rows, marked=shown.index(splits[0]))
