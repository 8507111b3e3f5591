"""Trajectories of a run as files (``rollout.dump_to_file``): one JSON object per line, one file per step. No torch.

A line keeps the tokens with their log-probabilities and versions, for programs, and the text in segments of tokens
that one version sampled, for readers: decoding token by token would break characters apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from archon_core.contracts.workflows import Trajectory
from archon_core.run_files.trajectories import FOLDER, Line, Segment, steps_in
from archon_engine.checkpoint.publication import publish_text

STALE = "it is staler than rollout.max_head_offpolicyness allows"

UNDECODED = "\ufffd"
"""Stands in decoded text for bytes that are no whole character."""

MOST_BYTES = 4
"""Bytes of the longest character in UTF-8."""

Decode = Callable[[Sequence[int]], str]


def segments_of(trajectory: Trajectory, decode: Decode) -> tuple[Segment, ...]:
    """The segments of a trajectory."""
    origins = [v if sampled else None for v, sampled in zip(trajectory.versions, trajectory.loss_mask, strict=True)]
    found, start = [], 0
    for version, run in groupby(origins):
        end = start + len(list(run))
        found.append(Segment(decode(trajectory.token_ids[start:end]), version))
        start = end
    return tuple(found)


def pieces_of(trajectory: Trajectory, decode: Decode) -> tuple[tuple[str, int], ...]:
    """The sampled text, piece by piece, each with its number of tokens: the fewest that decode to whole characters.

    Text that depends on the tokens before it, such as a space that a tokenizer strips at the start, may differ from the
    one in ``segments``.
    """
    found: list[tuple[str, int]] = []
    part: list[int] = []
    sampled = [token for token, mine in zip(trajectory.token_ids, trajectory.loss_mask, strict=True) if mine]
    for place, token in enumerate(sampled, start=1):
        part.append(token)
        text = decode(part)
        if not text.endswith(UNDECODED) or len(part) == MOST_BYTES or place == len(sampled):
            found.append((text, len(part)))
            part = []
    return tuple(found)


def line_of(
    trajectory: Trajectory,
    decode: Decode,
    *,
    step: int,
    group: int,
    sample: int,
    dropped: str = "",
    trainer_logprobs: Sequence[float] | None = None,
) -> Line:
    """The line of a trajectory.

    Args:
        step: counts from 1.
        trainer_logprobs: of all its tokens; ``None`` if unknown, and then the line has no pieces either.
    """
    known = zip(trainer_logprobs or (), trajectory.loss_mask, strict=trainer_logprobs is not None)
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
        pieces=() if trainer_logprobs is None else pieces_of(trajectory, decode),
        trainer_logprobs=tuple(logprob if mine else 0.0 for logprob, mine in known),
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
