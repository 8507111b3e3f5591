"""``archon simulate``: steps per second of asynchronous training against its staleness. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from archon_core.cli.console import print_json, print_table, print_text
from archon_core.config.validation import check_options
from archon_core.errors import ConfigError
from archon_rl.simulation.event_loop import Forecast, scaled_to_batch, simulate
from archon_rl.simulation.run_times import RunTimes, read_run_times
from archon_rl.simulation.workload import Workload

REQUIRED = ("batch_size", "group_seconds", "train_seconds", "concurrency")
MOST_STALENESS = 64
MOST_GROUPS = 1_000_000
"""Groups of all simulated runs together; a million takes about a minute."""


def simulate_runs(
    run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Read the times from the metrics of this run folder; other options replace them.",
        ),
    ] = None,
    staleness: Annotated[
        str,
        typer.Option(metavar="K,K,...", help="Values of rollout.max_head_offpolicyness to compare."),
    ] = "0,1,2,4,8",
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Prompts of a step.")] = None,
    group_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Mean time to sample a group, rewards included, while its server samples --concurrency of them.",
        ),
    ] = None,
    train_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="A training step without waiting and publication.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Groups that a server samples at a time.")
    ] = None,
    servers: Annotated[int | None, typer.Option(metavar="N", help="Number of servers [1].")] = None,
    spread: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Standard deviation of the time of a group over its mean; the times are log-normal [0.5]."
        ),
    ] = None,
    publish_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Publication of weights, in which the trainer waits [0].")
    ] = None,
    rejected: Annotated[
        float | None, typer.Option(metavar="X", help="Share of groups that dynamic sampling leaves out [0].")
    ] = None,
    max_rounds: Annotated[int | None, typer.Option(metavar="N", help="actor.dynamic_sampling_max_rounds [10].")] = None,
    max_concurrent_rollouts: Annotated[
        int | None, typer.Option(metavar="N", help="Groups in progress on all servers; default: --batch-size.")
    ] = None,
    queue_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Groups in progress or waiting for their step; default: 16 times --max-concurrent-rollouts.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, metavar="N", help="Training steps to simulate.")] = 60,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the times of groups [1].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict steps per second of asynchronous training for several bounds of staleness.

    The simulation starts groups and fills batches by the collector's own rules. A group is what is sampled from one
    prompt. Times come from the options, or from a run, synchronous or not:
    archon simulate --from runs/arithmetic/grpo_async
    """
    options = locals()
    given = {field.name: options[field.name] for field in fields(Workload) if options[field.name] is not None}
    bounds = _parse_staleness(staleness)
    times = None if run is None else read_run_times(run)
    workload = _workload(given, times, steps)
    _check_size(workload, bounds, steps)
    forecasts = [simulate(workload, bound, steps) for bound in bounds]
    synchronous = forecasts[0] if bounds[0] == 0 else simulate(workload, 0, steps)
    if as_json:
        print_json(
            {
                "workload": asdict(workload),
                "measured": None
                if times is None
                else {"staleness": times.staleness, "steps_per_second": times.steps_per_second},
                "forecasts": [_row(forecast, synchronous) for forecast in forecasts],
            }
        )
        return
    _print(workload, forecasts, synchronous, times)


def _workload(given: dict[str, Any], times: RunTimes | None, steps: int) -> Workload:
    values = given if times is None else times.options | given
    missing = [name for name in REQUIRED if name not in values and (name != "group_seconds" or times is None)]
    if missing:
        them = "them" if len(missing) > 1 else "it"
        source = "" if times is None else f", nor do the metrics of the run contain {them}"
        other = ", or --from with the folder of a run" if times is None else ""
        raise ConfigError(
            f"archon simulate: found no {', '.join(map(_option, missing))}{source}; allowed are numbers above 0; give "
            f"{them}{other}"
        )
    workload = Workload(**{"group_seconds": 1.0} | values)
    problems = [f"{_option(name)}:{text.partition(':')[2]}" for name, text in check_options(workload)]
    if problems:
        raise ConfigError("\n".join(problems))
    if times is None:
        return workload
    # The time of a group follows from the run as it was; what was given describes another run.
    measured = replace(workload, **times.options, group_seconds=1.0)
    return replace(scaled_to_batch(measured, times.sampling_seconds, steps), **given)


def _parse_staleness(text: str) -> list[int]:
    try:
        bounds = sorted({int(part) for part in text.split(",")})
    except ValueError:
        bounds = [-1]
    if not 0 <= bounds[0] <= bounds[-1] <= MOST_STALENESS:
        raise ConfigError(
            f"--staleness: found {text!r}; allowed are numbers from 0 to {MOST_STALENESS}; write them as in "
            "--staleness 0,1,2"
        )
    return bounds


def _check_size(workload: Workload, bounds: list[int], steps: int) -> None:
    n_groups = int(steps * workload.batch_size / (1 - workload.rejected)) * len(bounds)
    if n_groups > MOST_GROUPS:
        raise ConfigError(
            f"archon simulate: found {n_groups:,} groups to simulate; allowed are {MOST_GROUPS:,}; give fewer "
            "--steps or values of --staleness"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _row(forecast: Forecast, synchronous: Forecast) -> dict[str, Any]:
    speedup = forecast.steps_per_second / synchronous.steps_per_second
    return asdict(forecast) | {"speedup": speedup, "limit": forecast.limit}


def _print(workload: Workload, forecasts: list[Forecast], synchronous: Forecast, times: RunTimes | None) -> None:
    sampling = synchronous.waits / synchronous.steps_per_second
    training = workload.train_seconds + workload.publish_seconds
    print_text(
        f"{workload.batch_size} groups per step, {workload.n_places} sampled at a time: {sampling:.3g} s for a batch; "
        f"{training:.3g} s to train and publish"
    )
    print_text("")
    print_table(
        ("staleness", "steps/s", "speedup", "step", "trainer waits", "servers busy", "mean staleness", "limit"),
        [
            (
                str(one.staleness),
                f"{one.steps_per_second:.3g}",
                f"{one.steps_per_second / synchronous.steps_per_second:.2f}",
                f"{1 / one.steps_per_second:.3g} s",
                f"{one.waits:.0%}",
                f"{one.busy:.0%}",
                f"{one.mean_staleness:.2f}",
                one.limit,
            )
            for one in forecasts
        ],
    )
    if times is not None:
        print_text(f"\nmeasured at staleness {times.staleness}: {times.steps_per_second:.3g} steps/s")
