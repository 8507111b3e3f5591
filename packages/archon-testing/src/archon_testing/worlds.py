"""Worlds: run a function on several ranks of a gloo process group, started in a fraction of a second.

Every rank is forked from a forkserver that has torch and the engine loaded. ``run_world`` returns the results of all
ranks, or raises ``WorldError`` with the rank that failed first. ``run_worlds`` runs several worlds at once. Neither
leaves processes behind.

::

    def sum_of_ranks() -> float:
        value = torch.tensor(float(dist.get_rank()))
        dist.all_reduce(value)
        return value.item()

    assert run_world(sum_of_ranks, 4) == [6.0] * 4
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from archon_core.errors import ConfigError
from archon_testing.failures import WorldError
from archon_testing.functions import FunctionReference
from archon_testing.rank_process import RankStart
from archon_testing.running_world import OnValue, RunningWorld

__all__ = ["MOST_RANKS", "World", "WorldError", "run_world", "run_worlds"]

MOST_RANKS = 8


@dataclass(frozen=True)
class World:
    """A function to run on ranks.

    Attributes:
        function: at the top level of a module or test file. Values of a generator function go to ``on_value``, and its
            result is ``None``.
        n_ranks: 1 to 8.
        args: arguments, equal for all ranks; they must be picklable, and so must the results.
        time_limit: seconds until a rank returns, or yields its next value.
        on_value: receives yielded values.
        show_output: print the ranks' output, each line with its rank, at the end.
    """

    function: Callable[..., Any] | FunctionReference
    n_ranks: int
    args: Sequence[Any] = ()
    time_limit: float = 120.0
    on_value: OnValue | None = None
    show_output: bool = True


def run_world(
    function: Callable[..., Any] | FunctionReference,
    n_ranks: int,
    args: Sequence[Any] = (),
    *,
    time_limit: float = 120.0,
    on_value: OnValue | None = None,
    show_output: bool = True,
) -> list[Any]:
    """Run ``function(*args)`` on every rank of a world, each a single-threaded process, and return all results.

    Two or more ranks get a default gloo process group; a single rank gets none. See ``World`` for the arguments.

    Returns:
        The result of each rank, in order.

    Raises:
        ConfigError: an argument is invalid.
        WorldError: a rank raised, died, or exceeded the time limit; in that case its stack is shown.
    """
    [(_, outcome)] = run_worlds([World(function, n_ranks, args, time_limit, on_value, show_output)])
    if isinstance(outcome, WorldError):
        raise outcome
    return outcome


def run_worlds(
    worlds: Sequence[World], *, ranks_at_once: int = MOST_RANKS
) -> Iterator[tuple[int, list[Any] | WorldError]]:
    """Run worlds in parallel, with up to ``ranks_at_once`` ranks in total; the next world is the first that fits.

    An exception from ``on_value``, Ctrl-C, or closing the generator early ends all worlds.

    Args:
        worlds: the worlds to run.
        ranks_at_once: limit of running ranks; a single larger world may exceed it.

    Yields:
        The index of a world, as soon as it has ended, and its results or its error.

    Raises:
        ConfigError: before any world starts, if one is invalid.
    """
    prepared = [_prepare(world) for world in worlds]
    waiting = list(range(len(worlds)))
    running: dict[int, tuple[RunningWorld, ExitStack]] = {}
    try:
        while waiting or running:
            free = ranks_at_once - sum(worlds[place].n_ranks for place in running)
            while (place := _next(worlds, waiting, free, alone=not running)) is not None:
                waiting.remove(place)
                running[place] = _start(worlds[place], *prepared[place])
                free -= worlds[place].n_ranks
            _hear([world for world, _ in running.values()])
            for place in [place for place, (world, _) in running.items() if world.has_ended]:
                world, stack = running.pop(place)
                with stack:
                    outcome = _outcome(world, show_output=worlds[place].show_output)
                yield place, outcome
    finally:
        with ExitStack() as everything:
            for _, stack in running.values():
                everything.push(stack)


def _prepare(world: World) -> tuple[FunctionReference, bytes]:
    n_ranks, time_limit, function = world.n_ranks, world.time_limit, world.function
    if not isinstance(n_ranks, int) or isinstance(n_ranks, bool) or not 1 <= n_ranks <= MOST_RANKS:
        raise ConfigError(f"n_ranks of a world: found {n_ranks!r}; allowed are 1 to {MOST_RANKS}")
    if not (isinstance(time_limit, (int, float)) and math.isfinite(time_limit) and time_limit > 0):
        raise ConfigError(f"time_limit of a world: found {time_limit!r}; allowed is a positive number of seconds")
    reference = function if isinstance(function, FunctionReference) else FunctionReference.of(function)
    try:
        return reference, pickle.dumps(tuple(world.args))
    except Exception as error:  # pickle raises PicklingError, TypeError, AttributeError and what __reduce__ raises
        raise ConfigError(
            f"args of a world: found values that cannot be pickled ({error}); pass plain values, tensors, or "
            "dataclasses of them"
        ) from error


def _start(world: World, function: FunctionReference, arguments: bytes) -> tuple[RunningWorld, ExitStack]:
    """The started world, and an exit stack that ends it."""
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="archon-world-", ignore_cleanup_errors=True)
        place, n_ranks = Path(stack.enter_context(folder)), world.n_ranks
        starts = [
            # Collectives time out after the world's limit, so that a hang is reported with stacks.
            RankStart(rank, n_ranks, place, dict(os.environ), function, arguments, 2 * world.time_limit + 60)
            for rank in range(n_ranks)
        ]
        on_value = world.on_value or (lambda rank, value: None)
        running = stack.enter_context(RunningWorld(starts, world.time_limit, on_value))
        return running, stack.pop_all()
    raise AssertionError("an exit stack swallows nothing")


def _hear(worlds: Sequence[RunningWorld]) -> None:
    """Wait for a message of any world, or until one needs attention."""
    sources = {source: (world, rank) for world in worlds for source, rank in world.waits_for.items()}
    seconds = min(world.seconds_left for world in worlds)
    heard = [sources[source] for source in wait(list(sources), timeout=None if seconds == math.inf else seconds)]
    for world in worlds:
        world.hear([rank for of_world, rank in heard if of_world is world])


def _outcome(world: RunningWorld, *, show_output: bool) -> list[Any] | WorldError:
    try:
        return world.results()
    except WorldError as error:
        return error
    finally:
        if show_output:
            world.show_output()


def _next(worlds: Sequence[World], waiting: Sequence[int], free: int, *, alone: bool) -> int | None:
    """The index of the first world that fits; of the first one if nothing is running."""
    if alone and waiting:
        return waiting[0]
    return next((place for place in waiting if worlds[place].n_ranks <= free), None)
