"""``expert_load-<role>.jsonl``: tokens of each expert in each layer, for some of the optimizer steps of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.run_files.json_lines import read_json_lines

EXPERT_LOAD_PREFIX = "expert_load-"
"""The file of a role is ``expert_load-<role>.jsonl`` in the run folder."""


@dataclass(frozen=True)
class ExpertLoad:
    """The loads of one optimizer step.

    Attributes:
        step: number of the optimizer step, from 1: the version of the weights after it.
        layers: layer -> tokens of each expert.
    """

    step: int
    layers: Mapping[str, Sequence[int]]


def render_load(load: ExpertLoad) -> str:
    """A line of the file, without its end."""
    return json.dumps({"step": load.step, "layers": {name: list(counts) for name, counts in load.layers.items()}})


def find_loads(run_folder: Path) -> dict[str, Path]:
    """Role -> file, for all files of loads in a run folder."""
    paths = sorted(run_folder.glob(f"{EXPERT_LOAD_PREFIX}*.jsonl"))
    return {path.stem.removeprefix(EXPERT_LOAD_PREFIX): path for path in paths}


def read_loads(path: Path) -> list[ExpertLoad]:
    """The loads of a file, in order; skips an incomplete last line after a crash.

    Raises:
        DataError: another line is not a load.
    """
    return read_json_lines(path, _load, allowed="allowed is what a run writes; remove the file")


def _load(data: Any) -> ExpertLoad:
    layers = {str(name): tuple(map(int, counts)) for name, counts in data["layers"].items()}
    if not layers or not all(layers.values()):
        raise ValueError("no layer, or one without experts")
    return ExpertLoad(int(data["step"]), layers)
