"""Replays a schedule for the options of ``archon pipeline show``."""

from __future__ import annotations

import math

from archon_core.errors import ConfigError
from archon_core.plugins import ScheduleSpec, registry
from archon_pipeline.checking import check_actions
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.placement import place_stages
from archon_pipeline.simulator import simulate
from archon_pipeline.view import View

_MOST_PASSES = 50_000
"""Micro-batches times stages; more would be unreadable and take minutes to draw."""


def plan_view(
    schedule: str | None,
    n_ranks: int | None,
    n_micro_batches: int | None,
    stages_per_rank: int | None,
    costs: str,
    message: float,
) -> tuple[str, View]:
    """The title and the timeline of a schedule.

    Raises:
        ConfigError: an option is missing or wrong.
        UnknownNameError: no installed package provides the schedule.
        PluginError: its action lists cannot be executed.
    """
    if schedule is None:
        raise ConfigError(
            "archon pipeline show: found no SCHEDULE; allowed are the names that `archon schedules` lists; give one, "
            "or give --run with the folder of a run"
        )
    spec = registry().get(ScheduleSpec, schedule)
    ranks = _at_least_one("--pp", n_ranks)
    micro_batches = _at_least_one("--microbatches", n_micro_batches)
    per_rank = _choose_stages_per_rank(spec, stages_per_rank)
    if spec.multiple_of_ranks and micro_batches % ranks:
        raise ConfigError(
            f"--microbatches: found {micro_batches}; {spec.name} allows multiples of --pp, here {ranks}; use "
            f"{math.ceil(micro_batches / ranks) * ranks}"
        )
    n_stages = ranks * per_rank
    if n_stages * micro_batches > _MOST_PASSES:
        raise ConfigError(
            f"archon pipeline show: found {n_stages} stages x {micro_batches} micro-batches; allowed is a product of "
            f"{_MOST_PASSES} to draw; give fewer micro-batches: from twice --pp on, the pattern repeats"
        )
    times = _parse_costs(costs)
    if not (message >= 0 and math.isfinite(message)):
        raise ConfigError(f"--message: found {message:g}; allowed is a time of 0 or more; write one, such as 0.1")
    rank_of = place_stages(spec.placement, ranks, n_stages)
    actions = spec.load()(ranks, n_stages, micro_batches)
    check_actions(actions, rank_of, micro_batches, schedule=spec.name)
    timeline = simulate(actions, rank_of, Costs.alike(n_stages, times, message=message))
    stages = f"{per_rank} stages per rank ({spec.placement})" if per_rank > 1 else "1 stage per rank"
    title = f"{spec.name}: {_count(ranks, 'rank')}, {_count(micro_batches, 'micro-batch')}, {stages}"
    return title, View("", timeline)


def _count(number: int, noun: str) -> str:
    ending = "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{ending if number != 1 else ''}"


def _at_least_one(option: str, value: int | None) -> int:
    if value is None:
        raise ConfigError(f"{option}: found nothing; allowed is a number from 1; add {option} 4")
    if value < 1:
        raise ConfigError(f"{option}: found {value}; allowed is 1 or more; use {option} 4")
    return value


def _choose_stages_per_rank(spec: ScheduleSpec, asked: int | None) -> int:
    fixed = spec.stages_per_rank
    if fixed is not None:
        if asked not in (None, fixed):
            raise ConfigError(
                f"--stages-per-rank: found {asked}; {spec.name} allows {fixed}; leave the option out, or take a "
                "schedule with any number, such as Interleaved1F1B"
            )
        return fixed
    if asked is not None and asked < 2:
        raise ConfigError(
            f"--stages-per-rank: found {asked}; {spec.name} allows 2 or more; use 2, or 1F1B for one stage per rank"
        )
    return asked or spec.usual_stages_per_rank


def _parse_costs(text: str) -> StageCosts:
    try:
        forward, of_input, of_weights = (float(part) for part in text.split(","))
    except ValueError:
        forward = of_input = of_weights = math.nan
    if not all(cost > 0 and math.isfinite(cost) for cost in (forward, of_input, of_weights)):
        raise ConfigError(
            f"--costs: found {text!r}; allowed are three times above 0, of forward, gradient of the input and "
            "gradients of the weights; write them as in --costs 1,1.2,0.8"
        )
    return StageCosts(forward, of_input, of_weights)
