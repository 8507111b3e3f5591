"""Reads a run folder. A damaged or missing file is a problem that the page names, not an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from archon_core.errors import ArchonError, ConfigError, DataError
from archon_core.run_files.expert_load import ExpertLoad, find_loads, read_loads
from archon_core.run_files.lock import is_held
from archon_core.run_files.metrics import METRICS, read_metrics
from archon_core.run_files.pipeline import RecordedStep, find_recordings, read_recording
from archon_core.run_files.starts import STARTS, Start, read_starts
from archon_core.run_files.trajectories import Line, read_step, steps_in
from archon_report.series import Series, series_of
from archon_report.state import State, state_of, total_steps

Read = TypeVar("Read")

MOST_STEPS = 3
"""Most steps whose trajectories are read: the first, one in the middle, and the last."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: its path.
        name: for readers.
        rows: of the metrics.
        config: the resolved configuration.
        decisions: the recorded decisions.
        starts: every start of the run.
        recordings: role -> a measured pipeline step.
        loads: role -> expert loads over steps.
        lines: step -> its trajectories, for some steps.
        files: traces and memory snapshots, relative to the folder -> bytes.
        held: whether a process trains it; ``None`` if unknown.
        problems: files that could not be read, as sentences.
    """

    folder: Path
    name: str
    rows: Sequence[Mapping[str, float]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    decisions: Sequence[Mapping[str, str]] = ()
    starts: Sequence[Start] = ()
    recordings: Mapping[str, RecordedStep] = field(default_factory=dict)
    loads: Mapping[str, Sequence[ExpertLoad]] = field(default_factory=dict)
    lines: Mapping[int, Sequence[Line]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    held: bool | None = None
    problems: Sequence[str] = ()

    @cached_property
    def series(self) -> dict[str, Series]:
        """Metric -> its values over steps."""
        return series_of(self.rows)

    @property
    def step(self) -> int:
        """The last step in its metrics; 0 before the first. Supervised starts have negative steps."""
        return max((0, *(int(row["step"]) for row in self.rows)))

    @property
    def total(self) -> int | None:
        """The steps that it should do; ``None`` if unknown."""
        return total_steps(self.config, self.starts)

    @property
    def state(self) -> State:
        """Whether it goes on, and how it ended."""
        return state_of(held=self.held, starts=self.starts, step=self.step, total=self.total)


def read_run(folder: Path, name: str = "", *, only_metrics: bool = False) -> Run:
    """Read a run folder, also while the run goes on.

    Args:
        folder: the run folder.
        name: for readers; by default the last two parts of its path.
        only_metrics: leave out the large files: trajectories, recordings, expert loads.

    Raises:
        ConfigError: it is not the folder of a run that has started.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: found {'a file' if folder.exists() else 'no such folder'}; allowed is the folder of a "
            "run, such as runs/demo/grpo; give the folder that archon train names when it starts"
        )
    if not (folder / METRICS).is_file() and not (folder / "config.yaml").is_file():
        inside = runs_inside(folder)
        advice = f"give one of its runs: {inside}" if inside else "give the folder of a run that has started"
        raise ConfigError(f"{folder}: found no {METRICS} and no config.yaml; {advice}")
    reader = _Reader(folder)
    file = folder / METRICS
    run = Run(
        folder=folder,
        name=name or "/".join(folder.resolve().parts[-2:]),
        rows=reader(METRICS, lambda: read_metrics(file, on_damage=reader.damaged.append), []),
        config=reader("config.yaml", lambda: _read_config(folder / "config.yaml"), {}),
        starts=reader(STARTS, lambda: read_starts(folder), []),
        held=is_held(folder),
    )
    if not only_metrics:
        run = replace(
            run,
            decisions=reader("decisions.json", lambda: _read_decisions(folder / "decisions.json"), []),
            recordings=_each(_find_recordings(folder), read_recording, reader),
            loads=_each(find_loads(folder), read_loads, reader),
            lines=_each(_some(steps_in(folder)), lambda path: list(read_step(path)), reader),
            files={
                str(path.relative_to(folder)): path.stat().st_size
                for path in sorted((folder / "profile").rglob("*"))
                if path.is_file()
            },
        )
    return replace(run, problems=reader.problems)


def runs_inside(folder: Path) -> str:
    """Names of runs in a folder, such as an experiment's, for messages."""
    found = sorted(child.name for child in folder.glob("*") if (child / METRICS).is_file())
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")


class _Reader:
    """Reads files of a run; remembers the ones that it could not read, and damaged lines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._problems: list[str] = []
        self.damaged: list[DataError] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences that name the files. All damaged lines are one problem, so that a page stays readable."""
        more = f" (damaged lines in all: {len(self.damaged)})" if len(self.damaged) > 1 else ""
        return (*(self._named(METRICS, error) + more for error in self.damaged[:1]), *self._problems)

    def __call__(self, name: str, read: Callable[[], Read], otherwise: Read) -> Read:
        try:
            return read()
        except (ArchonError, OSError, UnicodeDecodeError, RecursionError) as error:
            self._problems.append(self._named(name, error))
            return otherwise

    def _named(self, name: str, error: Exception) -> str:
        text = str(error).replace(f"{self._folder}/", "", 1)
        return text if name in text.partition(":")[0] else f"{name}: {text}"


def _each(found: Mapping[Any, Path], read: Callable[[Path], Any], reader: _Reader) -> dict[Any, Any]:
    values = {key: reader(path.name, lambda path=path: read(path), None) for key, path in found.items()}
    return {key: value for key, value in values.items() if value}


def _find_recordings(folder: Path) -> dict[str, Path]:
    """Role -> recording. A role without one has that of the last profiled step."""
    found = find_recordings(folder)
    profiled: dict[str, Path] = {}
    for step in sorted((folder / "profile").glob("step-*")):
        recorded = find_recordings(step).items()
        profiled |= {f"{role}, while profiled": path for role, path in recorded if role not in found}
    return found | profiled


def _some(steps: Mapping[int, Path]) -> dict[int, Path]:
    """The first step, one in the middle, and the last."""
    numbers = list(steps)
    if len(numbers) > MOST_STEPS:
        numbers = [numbers[0], numbers[len(numbers) // 2], numbers[-1]]
    return {number: steps[number] for number in numbers}


def _read_config(file: Path) -> Mapping[str, Any]:
    import yaml

    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}: cannot parse it ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{file}: found no mapping of options")
    return found


def _read_decisions(file: Path) -> Sequence[Mapping[str, str]]:
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [{name: str(one[name]) for name in ("option", "requested", "effective", "reason")} for one in found]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: cannot parse it ({error})") from error


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several runs; their names are unique and as short as two parts of their paths allow.

    Raises:
        ConfigError: a folder is not a run's, or is given twice.
    """
    real = [folder.resolve() for folder in folders]
    for place, folder in enumerate(real):
        if folder in real[:place]:
            raise ConfigError(f"{folders[place]}: found the same run twice; give every run once")
    return [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """A unique name for each run folder: the last two parts of its path, or its path where others share them."""
    short = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
