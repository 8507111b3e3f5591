"""Trajectories of a run as files (``rollout.dump_to_file``): one JSON object per line, one file per step. No torch.

A line keeps the tokens with their log-probabilities and versions, for programs, and the text in segments of tokens
that one version sampled, for readers: decoding token by token would break characters apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from archon_core.contracts.workflows import Trajectory
from archon_core.errors import DataError
from archon_engine.checkpoint.publication import publish_text

FOLDER = "trajectories"
"""In the run folder."""

STALE = "it is staler than rollout.max_head_offpolicyness allows"

_NAME = re.compile(r"step-(\d+)\.jsonl")

Decode = Callable[[Sequence[int]], str]


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

    @property
    def weights(self) -> tuple[int, ...]:
        """The versions that sampled its tokens, the oldest one first."""
        return tuple(sorted({one.version for one in self.segments if one.version is not None}))


def segments_of(trajectory: Trajectory, decode: Decode) -> tuple[Segment, ...]:
    """The segments of a trajectory."""
    origins = [v if sampled else None for v, sampled in zip(trajectory.versions, trajectory.loss_mask, strict=True)]
    found, start = [], 0
    for version, run in groupby(origins):
        end = start + len(list(run))
        found.append(Segment(decode(trajectory.token_ids[start:end]), version))
        start = end
    return tuple(found)


def line_of(trajectory: Trajectory, decode: Decode, *, step: int, group: int, sample: int, dropped: str = "") -> Line:
    """The line of a trajectory; ``step`` counts from 1."""
    return Line(
        step=step,
        group=group,
        sample=sample,
        reward=float(trajectory.reward),
        dropped=dropped,
        truncated=trajectory.truncated,
        segments=segments_of(trajectory, decode),
        token_ids=tuple(trajectory.token_ids),
        loss_mask=tuple(int(one) for one in trajectory.loss_mask),
        logprobs=tuple(trajectory.logprobs),
        versions=tuple(trajectory.versions),
        metadata=dict(trajectory.metadata),
    )


def write_step(folder: Path, step: int, lines: Sequence[Line]) -> None:
    """Write the file of a step, and remove those of later steps, which a run before a resumption had reached.

    Args:
        folder: the run folder.
        step: from 1.
        lines: the step's.
    """
    files = folder / FOLDER
    files.mkdir(exist_ok=True)
    publish_text(files / f"step-{step:08d}.jsonl", "".join(f"{json.dumps(asdict(one))}\n" for one in lines))
    for later, file in steps_in(folder).items():
        if later > step:
            file.unlink()


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
    values = {field.name: data[field.name] for field in fields(Line)}
    values["segments"] = tuple(Segment(one["text"], one["version"]) for one in values["segments"])
    for name in ("token_ids", "loss_mask", "logprobs", "versions"):
        values[name] = tuple(values[name])
    line = Line(**values)
    if not isinstance(line.step, int) or not isinstance(line.reward, int | float):
        raise TypeError("step and reward are numbers")
    return line
