"""Prints the plan of an RL run: who waits for whom, and how many devices should sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from archon_core.cli.console import print_table, print_text
from archon_plan.numbers import count, percent, seconds
from archon_plan.rl import RLPlan
from archon_plan.splits import Split

BEST_SPLITS = 3


def print_run(plan: RLPlan, splits: Sequence[Split] = ()) -> None:
    """Print the parts of a step, its pace, other bounds of staleness, and the fastest divisions of the devices."""
    run, pace, samples = plan.run, plan.pace, plan.run.samples
    print_text(Text(f"the run: {plan.steps_per_hour:,.1f} steps per hour, {seconds(pace.seconds)} per step", "bold"))
    lengths = f"{samples.n_samples} completions of {samples.lengths.mean:,.0f} tokens"
    print_text(f"{samples.prompts:,} prompts x {lengths} per step; {_where(plan)}\n")
    sampling = plan.fleet.batch_seconds if run.staleness == 0 else plan.fleet.work
    publication = "gathering of weights" if run.colocated else f"publication by {run.transport}"
    rows = [(name, seconds(value)) for name, value in plan.training.items()]
    rows += [(publication, seconds(plan.publication)), ("sampling of a batch", seconds(sampling))]
    print_table(("part of a step", "time"), rows)
    waits = (
        f"the trainer waits {percent(pace.trainer_waits)} of the time, and {percent(pace.servers_wait)} of the places "
        "for sequences are empty"
    )
    if run.staleness == 0:
        print_text(f"\nsampling and training take turns: {waits}")
    else:
        print_text(f"\nstaleness up to {run.staleness}: {waits}; limited by {plan.limit}")
    print_text(f"{count(samples.sequences * samples.lengths.mean / pace.seconds)} sampled tokens/s")
    if len(plan.paces) > 1:
        print_text("")
        paces = [
            (str(bound), f"{3600 / other.seconds:,.1f}", percent(other.trainer_waits), percent(other.servers_wait))
            for bound, other in plan.paces.items()
        ]
        print_table(("staleness", "steps per hour", "trainer waits", "empty places"), paces)
    if splits:
        print_text("")
        print_table(("devices that train", "that sample", "steps per hour", "limited by"), _split_rows(plan, splits))


def _where(plan: RLPlan) -> str:
    run = plan.run
    if run.colocated:
        return f"the trainer's {run.trainer_devices} devices sample"
    return f"{run.servers} servers of {run.server.n_devices} devices beside {run.trainer_devices} that train"


def _split_rows(plan: RLPlan, splits: Sequence[Split]) -> list[tuple[str, ...]]:
    shown = list(splits[:BEST_SPLITS])
    shown += [split for split in splits[BEST_SPLITS:] if _is_asked(split, plan)]
    return [
        (
            f"{split.trainer}{' (as asked)' if _is_asked(split, plan) else ''}",
            str(split.servers),
            f"{split.plan.steps_per_hour:,.1f}",
            split.plan.limit,
        )
        for split in shown
    ]


def _is_asked(split: Split, plan: RLPlan) -> bool:
    return (split.trainer, split.servers) == (plan.run.trainer_devices, plan.run.server_devices)


def run_data(plan: RLPlan, splits: Sequence[Split] = ()) -> dict[str, Any]:
    """The plan of an RL run as JSON data."""
    run, samples = plan.run, plan.run.samples
    return {
        "seconds_per_step": plan.step_seconds,
        "steps_per_hour": plan.steps_per_hour,
        "training": dict(plan.training),
        "publication": plan.publication,
        "sampling": plan.fleet.batch_seconds if run.staleness == 0 else plan.fleet.work,
        "trainer_waits": plan.pace.trainer_waits,
        "servers_wait": plan.pace.servers_wait,
        "limit": plan.limit,
        "staleness": run.staleness,
        "trainer_devices": run.trainer_devices,
        "server_devices": run.server_devices,
        "prompts": samples.prompts,
        "samples_per_prompt": samples.n_samples,
        "completion_tokens": samples.lengths.mean,
        "steps_per_hour_by_staleness": {str(bound): 3600 / pace.seconds for bound, pace in plan.paces.items()},
        "splits": [
            {"trainer": split.trainer, "servers": split.servers, "steps_per_hour": split.plan.steps_per_hour}
            for split in splits
        ],
    }
