"""``archon trajectories``: read the trajectories that a run has written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archon_core.cli.console import print_text
from archon_core.errors import ConfigError
from archon_core.run_files.trajectories import FOLDER, Line, read_step, steps_in

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("green", "yellow", "magenta", "cyan", "blue", "red")
"""Of the versions that sampled a trajectory, the newest one first."""

INDENT = "    "


def trajectories(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    step: Annotated[int | None, typer.Option(help="Of this training step; without it, of the last one.")] = None,
    min_reward: Annotated[float | None, typer.Option(help="With at least this reward.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="With at most this reward.")] = None,
    limit: Annotated[int, typer.Option(help="Print at most so many; 0 for all.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, with all tokens.")] = False,
) -> None:
    """Read the trajectories of a run with rollout.dump_to_file=true: prompts, completions and rewards.

    The colour of a token is the version of the weights that sampled it. Where there are no colours, versions stand in
    brackets before their tokens, if a trajectory has several.
    """
    if limit < 0:
        raise ConfigError(f"--limit: found {limit}; allowed are numbers from 0, which stands for all")
    if min_reward is not None and max_reward is not None and min_reward > max_reward:
        raise ConfigError(f"--min-reward: found {min_reward:g}, above --max-reward {max_reward:g}; lower it")
    file = _file_of(run, step)
    found = _within(read_step(file), min_reward, max_reward)
    shown = list(islice(found, limit or None))
    if as_json:
        for line in shown:
            print(json.dumps(asdict(line)))
        return
    rest = sum(1 for _ in found)
    for line in shown:
        for text in describe(line, coloured=has_colours()):
            print_text(text)
        print_text("")
    print_text(_summary(file, len(shown), rest))


def _file_of(run: Path, step: int | None) -> Path:
    steps = steps_in(run)
    if not steps:
        what = f"no {FOLDER} folder with files" if run.is_dir() else "no such folder"
        raise ConfigError(
            f"{run}: found {what}; give the folder of a run with rollout.dump_to_file=true that has finished a step"
        )
    if step is None:
        return steps[max(steps)]
    if step not in steps:
        raise ConfigError(f"--step: found {step}; {run} has the steps {_ranges(steps)}; choose one of them")
    return steps[step]


def _within(lines: Iterator[Line], least: float | None, most: float | None) -> Iterator[Line]:
    for line in lines:
        if (least is None or line.reward >= least) and (most is None or line.reward <= most):
            yield line


def has_colours() -> bool:
    """Whether standard output is a terminal with colours; ``NO_COLOR`` turns them off."""
    from rich.console import Console

    console = Console()
    return console.is_terminal and console.color_system is not None and not console.no_color


def describe(line: Line, *, coloured: bool) -> list[str | Text]:
    """The lines that show a trajectory."""
    from rich.text import Text

    colours = _colours(line.weights)
    head = Text(f"step {line.step}  group {line.group}  sample {line.sample}  ")
    head.append(f"reward {line.reward:g}", "bold")
    if line.weights:
        head.append("  versions" if len(line.weights) > 1 else "  version")
    for version in line.weights:
        head.append(f" {version}", colours[version])
    notes = ["cut at the length limit"] if line.truncated else []
    if line.dropped:
        notes.append(f"dropped: {line.dropped}")
    if notes:
        head.append(f"  ({'; '.join(notes)})")
    body = Text()
    names_versions = not coloured and len(line.weights) > 1
    for segment in line.segments:
        if segment.version is None:
            body.append(printable(segment.text), "dim")
        else:
            body.append(f"[{segment.version}]" if names_versions else "")
            body.append(printable(segment.text), colours[segment.version])
    if not coloured and line.segments and line.segments[0].version is None:
        # Without colours, a mark shows where the prompt ends.
        first = printable(line.segments[0].text)
        body = Text.assemble(first, " => ", body[len(first) :])
    return [head, *(Text.assemble(INDENT, part) for part in body.split("\n", allow_blank=True))]


def printable(text: str) -> str:
    """A text whose control characters are written as escapes, because a terminal would execute them."""
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)


def _colours(versions: Sequence[int]) -> Mapping[int, str]:
    return {version: COLOURS[n % len(COLOURS)] for n, version in enumerate(sorted(versions, reverse=True))}


def _summary(file: Path, shown: int, rest: int) -> str:
    if rest:
        return f"{shown} of {shown + rest} trajectories of {file}; --limit 0 prints all"
    return f"{shown} trajector{'y' if shown == 1 else 'ies'} of {file}"


def _ranges(steps: Sequence[int] | Mapping[int, Path]) -> str:
    """Such as ``1-5, 8``."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
