"""Trajectories of a run: ``trajectories/step-00000012.jsonl``, one JSON object per line. Written by archon-rl."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from archon_core.errors import DataError

FOLDER = "trajectories"
"""In the run folder."""

ADDED = ("pieces", "trainer_logprobs")
"""Fields that lines of earlier versions lack."""

_NAME = re.compile(r"step-(\d+)\.jsonl")


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one origin.

    Attributes:
        text: their text, with special tokens.
        version: of the weights that sampled them; ``None`` for tokens of the prompt or between turns.
    """

    text: str
    version: int | None = None


@dataclass(frozen=True)
class Line:
    """One trajectory.

    Attributes:
        step: training step that consumed it, from 1, as in the metrics.
        group: number of its record, counted over all records that the run has drawn.
        sample: its place in the group.
        reward: raw reward.
        dropped: why the step did not train on it; empty if it did.
        truncated: whether it ended at the length limit.
        segments: its text.
        token_ids: of all tokens.
        loss_mask: 1 for sampled tokens.
        logprobs: of sampled tokens under the policy that sampled them; 0 for others.
        versions: of the weights that sampled each token; -1 for others.
        metadata: of the workflow.
        pieces: the sampled text in order, each piece with the number of tokens that it takes: a character may be
            several tokens. Empty if unknown.
        trainer_logprobs: of sampled tokens under the trainer's weights before the step; 0 for others. Empty if the step
            did not compute them.
    """

    step: int
    group: int
    sample: int
    reward: float
    dropped: str
    truncated: bool
    segments: tuple[Segment, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    metadata: Mapping[str, Any]
    pieces: tuple[tuple[str, int], ...] = ()
    trainer_logprobs: tuple[float, ...] = ()

    @property
    def weights(self) -> tuple[int, ...]:
        """The versions that sampled its tokens, the oldest one first."""
        return tuple(sorted({one.version for one in self.segments if one.version is not None}))


def steps_in(folder: Path) -> dict[int, Path]:
    """Step -> file, in order, of a run folder."""
    found = {}
    for file in (folder / FOLDER).glob("*.jsonl"):
        if name := _NAME.fullmatch(file.name):
            found[int(name[1])] = file
    return dict(sorted(found.items()))


def read_step(file: Path) -> Iterator[Line]:
    """The lines of a file.

    Raises:
        DataError: a line is not a trajectory's.
    """
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield _read_line(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{file}, line {number}: found {text[:60]!r} ({error}); allowed is a line that a run with "
                "rollout.dump_to_file=true wrote; remove the file"
            ) from error


def _read_line(data: Any) -> Line:
    values = {field.name: data[field.name] for field in fields(Line) if field.name not in ADDED or field.name in data}
    values["segments"] = tuple(Segment(one["text"], one["version"]) for one in values["segments"])
    for name in ("token_ids", "loss_mask", "logprobs", "versions", "trainer_logprobs"):
        values[name] = tuple(values.get(name, ()))
    values["pieces"] = tuple((str(text), int(n_tokens)) for text, n_tokens in values.get("pieces", ()))
    line = Line(**values)
    if not isinstance(line.step, int) or not isinstance(line.reward, int | float):
        raise TypeError("step and reward are numbers")
    for name in ("loss_mask", "logprobs", "versions", "trainer_logprobs"):
        count = len(getattr(line, name))
        if count != len(line.token_ids) and (count or name not in ADDED):
            raise ValueError(f"{name} has {count} values, token_ids {len(line.token_ids)}")
    return line
