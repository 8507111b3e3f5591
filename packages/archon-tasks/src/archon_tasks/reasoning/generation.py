"""Generates the problems of both splits, in a child process of ``dataset``."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

from archon_core.errors import ArchonError, ConfigError, did_you_mean
from archon_core.seeding import derive_seed

OPTION = "data.reasoning_gym.tasks"

MAX_SEED = 2**31
"""Some tasks hand their seed to numpy, which takes 32 bits."""

TRIES = 20
"""Problems to generate per wanted one, before the tasks count as exhausted."""


def main() -> None:
    """Read the order from the command line; write the pickled entries, or an error, to standard output."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints is no result
    try:
        result: dict[str, Any] = generate(json.loads(sys.argv[1]))
    except ArchonError as error:
        result = {"error": str(error)}
    with results:
        pickle.dump(result, results)


def generate(order: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The entries of both splits; tasks take turns.

    Held-out problems are all different, and none is a training problem. Training problems may repeat, as the tasks draw
    them.

    Args:
        order: ``tasks``, ``size``, ``validation_size`` and ``seed``.

    Raises:
        ConfigError: a task or its options are invalid, or there are too few problems.
    """
    held_out: dict[str, dict[str, Any]] = {}
    for entry in _draws(order, "validation", order["validation_size"]):
        if len(held_out) == order["validation_size"]:
            break
        held_out.setdefault(entry["question"], entry)
    new = (entry for entry in _draws(order, "train", order["size"]) if entry["question"] not in held_out)
    train = list(islice(new, order["size"]))
    for option, found in (("data.validation_size", len(held_out)), ("data.reasoning_gym.size", len(train))):
        wanted = order[option.rpartition(".")[2]]
        if found < wanted:
            raise ConfigError(
                f"{option}: found {wanted}, and {TRIES} times as many draws of the tasks gave {found} problems "
                "(held-out ones are all different, and not trained on); lower it, or give the tasks a larger range "
                f"({OPTION})"
            )
    return {"train": train, "validation": list(held_out.values())}


def _draws(order: Mapping[str, Any], split: str, wanted: int) -> Iterator[dict[str, Any]]:
    """Problems of the tasks in turn, at most ``TRIES`` times as many as wanted."""
    tasks = [
        _task(name, options or {}, size=TRIES * wanted, seed=derive_seed(order["seed"], "reasoning_gym", split, name))
        for name, options in order["tasks"].items()
    ]
    return islice((task[index] for index in count() for task in tasks), TRIES * wanted)


def _task(name: str, options: Mapping[str, Any], *, size: int, seed: int) -> Any:
    """A procedural data set of reasoning-gym, whose problem i is a function of seed and i."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    where = f"{OPTION}.{name}"
    known = sorted(set(DATASETS) - {"composite"})
    if name not in known:
        raise ConfigError(f"{OPTION}: found {name!r}; allowed are {', '.join(known)}{did_you_mean(name, known)}")
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: found {options!r}; allowed are options of the task, or null for its defaults")
    allowed = [f.name for f in dataclasses.fields(DATASETS[name][1]) if f.name not in ("seed", "size")]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"{where}: found the option {option!r}; allowed are {', '.join(allowed)}{did_you_mean(option, allowed)}"
            )
    try:
        return reasoning_gym.create_dataset(name, **options, size=max(1, size), seed=seed % MAX_SEED)
    except Exception as error:  # AssertionError, ValueError or TypeError, by the task
        given = ", ".join(f"{option}={value}" for option, value in options.items()) or "no options"
        raise ConfigError(
            f"{where}: found {given}; reasoning-gym refuses them: {type(error).__name__}: {error}; correct them"
        ) from error
