"""Prints the plan of an RL run, and gives it as JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from archon_core.cli.console import print_table, print_text
from archon_plan.numbers import count, percent, seconds
from archon_plan.overlap import Pace
from archon_plan.rl import RLPlan
from archon_plan.splits import Split

MOST_SPLITS = 5


def print_rl(plan: RLPlan, splits: Sequence[Split] = ()) -> None:
    """Print times of the run, what waits, and what other bounds of staleness and divisions of devices would give.

    Args:
        plan: of the run.
        splits: divisions of its devices, the fastest first.
    """
    run = plan.run
    print_text(Text(f"the run: {plan.steps_per_hour:,.1f} steps/h, {seconds(plan.step_seconds)} each", "bold"))
    print_text(f"{describe_samples(plan)}; {describe_servers(plan)}")
    print_table(
        ("part of a step", "time", ""), [(name, seconds(time), note) for name, time, note in parts_of_step(plan)]
    )
    print_text(
        f"the trainer waits {percent(plan.pace.trainer_waits)} of the time, places of the servers are empty "
        f"{percent(plan.pace.servers_wait)}; limited by {plan.limit}"
    )
    if len(plan.paces) > 1:
        print_text("")
        head = ("staleness", "steps/h", "step", "trainer waits", "places empty", "limit")
        print_table(
            head,
            [
                (f"{bound}{' *' if bound == run.staleness else ''}", *_pace_cells(pace, plan.limit_at(pace)))
                for bound, pace in plan.paces.items()
            ],
        )
    if splits:
        print_text("")
        head = ("sample", "train", "steps/h", "step", "trainer waits", "places empty", "limit")
        print_table(
            head,
            [
                (str(split.servers), _trainer(split, plan), *_pace_cells(split.plan.pace, split.plan.limit))
                for split in splits[:MOST_SPLITS]
            ],
        )


def describe_samples(plan: RLPlan) -> str:
    """What a step samples."""
    samples = plan.run.samples
    return (
        f"{samples.prompts:,} prompts x {samples.n_samples} completions of {samples.lengths.mean:,.0f} tokens "
        f"(at most {samples.lengths.limit:,})"
    )


def describe_servers(plan: RLPlan) -> str:
    """Who samples, and how many sequences at a time."""
    run, fleet = plan.run, plan.fleet
    if run.colocated:
        return f"the trainer's ranks sample, {fleet.places:,} sequences at a time on each data rank"
    servers = f"{run.servers} server{'s' if run.servers > 1 else ''} of {run.server.n_devices}"
    return (
        f"{servers} device{'s' if run.server.n_devices > 1 else ''} with room for {fleet.places:,} sequences, beside "
        f"{run.trainer_devices} that train"
    )


def parts_of_step(plan: RLPlan) -> list[tuple[str, float, str]]:
    """Name, seconds and note of every part of a step."""
    fleet, run = plan.fleet, plan.run
    ahead = run.staleness > 0 and not run.colocated
    sampling = fleet.work if ahead else fleet.batch_seconds
    tokens = run.samples.sequences * run.samples.lengths.mean
    rows = [("sampling", sampling, f"{count(tokens / sampling)} tokens/s{'; beside training' if ahead else ''}")]
    rows += [(name, time, _times(plan, name)) for name, time in plan.training.items()]
    if run.colocated:
        rows.append(("gathering weights to sample", plan.publication, ""))
    else:
        rows.append(("publication", plan.publication, f"by {run.transport}"))
    return rows


def _times(plan: RLPlan, name: str) -> str:
    times = next(one.times for one in plan.run.passes if one.name == name)
    return f"{times} optimizer steps" if times > 1 else ""


def _pace_cells(pace: Pace, limit: str) -> tuple[str, ...]:
    return (
        f"{3600 / pace.seconds:,.1f}",
        seconds(pace.seconds),
        percent(pace.trainer_waits),
        percent(pace.servers_wait),
        limit,
    )


def _trainer(split: Split, plan: RLPlan) -> str:
    is_this = split.plan.run.passes == plan.run.passes and split.plan.run.servers == plan.run.servers
    return f"{split.trainer}: {split.layout}{' *' if is_this else ''}"


def rl_data(plan: RLPlan, splits: Sequence[Split] = ()) -> dict[str, Any]:
    """The plan as JSON data."""
    run, fleet = plan.run, plan.fleet
    return {
        "devices": {"trainer": run.trainer_devices, "servers": run.server_devices},
        "samples": asdict(run.samples),
        "servers": {
            "number": run.servers,
            "devices_each": run.server.n_devices,
            "places": fleet.places,
            "running": fleet.running,
            "tokens_per_second": fleet.tokens_per_second,
            "batch_seconds": fleet.batch_seconds,
            "work_seconds": fleet.work,
        },
        "training_seconds": dict(plan.training),
        "publication": {"transport": None if run.colocated else run.transport, "seconds": plan.publication},
        "staleness": run.staleness,
        "steps_per_hour": plan.steps_per_hour,
        "limit": plan.limit,
        **_pace_data(plan.pace),
        "by_staleness": {str(bound): _pace_data(pace) for bound, pace in plan.paces.items()},
        "splits": [
            {"trainer": split.trainer, "servers": split.servers, "layout": split.layout, **_pace_data(split.plan.pace)}
            for split in splits
        ],
    }


def _pace_data(pace: Pace) -> Mapping[str, float]:
    return {
        "step_seconds": pace.seconds,
        "trainer_waits": pace.trainer_waits,
        "servers_wait": pace.servers_wait,
    }
