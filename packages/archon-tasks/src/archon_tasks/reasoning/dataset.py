"""The data set ``reasoning_gym``: problems that reasoning-gym generates from a seed.

Some of its tasks depend on the order of Python's sets, which differs from process to process. A child process with a
fixed order generates the problems, so that all ranks, and a resumed run, have the same ones.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError

ENTRY = "reasoning_gym"
"""Field of a record that holds reasoning-gym's own entry, which its score reads."""

OPTION = "data.reasoning_gym"


@dataclass(frozen=True)
class ReasoningDataset:
    """Generated records.

    Attributes:
        records: all records.
    """

    records: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.records[index]

    def where(self, index: int) -> str:
        """The task and the number of a problem, for messages."""
        return f"problem {index} of reasoning-gym ({self.records[index][ENTRY]['metadata']['source_dataset']})"


def reasoning_dataset(config: Any, *, split: Literal["train", "validation"], seed: int) -> Dataset:
    """The training problems, or ``data.validation_size`` held-out ones, none of which is a training problem.

    Raises:
        ConfigError: reasoning-gym is not installed, a task or one of its options is unknown or invalid, or the tasks
            have too few problems.
    """
    options = config.reasoning_gym
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError(
            "data.dataset: found 'reasoning_gym', whose package reasoning-gym is not installed; "
            "pip install 'archon-tasks[reasoning-gym]'"
        )
    if not options.tasks:
        raise ConfigError(f"{OPTION}.tasks: found none; name at least one, such as {{chain_sum: {{max_terms: 3}}}}")
    if not config.answer_key or "." in config.prompt_key + config.answer_key:
        raise ConfigError(
            f"data.prompt_key, data.answer_key: found {config.prompt_key!r} and {config.answer_key!r}; allowed are "
            "plain names for the fields that the data set 'reasoning_gym' writes; leave both out"
        )
    order = {
        "tasks": options.tasks,
        "size": options.size,
        "validation_size": config.validation_size,
        "seed": seed if options.seed is None else options.seed,
    }
    entries = pickle.loads(_generate(json.dumps(order)))[split]
    suffix = f"\n\n{options.instruction}" if options.instruction else ""
    return ReasoningDataset(
        [
            {
                config.prompt_key: entry["question"] + suffix,
                # Some tasks accept many answers and give none.
                config.answer_key: "" if entry["answer"] is None else str(entry["answer"]),
                ENTRY: entry,
            }
            for entry in entries
        ]
    )


@functools.lru_cache(maxsize=1)  # the two splits are loaded one after the other
def _generate(order: str) -> bytes:
    """The pickled entries of both splits, from a child process."""
    program = "import sys; sys.path[:] = sys.argv[2:]; from archon_tasks.reasoning.generation import main; main()"
    child = subprocess.run(
        [sys.executable, "-c", program, order, *sys.path],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if child.returncode:
        *_, last = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise ConfigError(
            f"{OPTION}: reasoning-gym could not generate the problems ({last}); correct the options of its tasks, or "
            "choose other tasks"
        )
    result = pickle.loads(child.stdout)
    if "error" in result:
        raise ConfigError(result["error"])
    return child.stdout
