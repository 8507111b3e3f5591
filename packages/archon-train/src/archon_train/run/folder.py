"""The run folder, which holds all files of a run.

``<fileroot>/<experiment_name>/<trial_name>/`` holds ``config.yaml`` (resolved), ``decisions.json``,
``metrics.jsonl``, ``tensorboard/``, ``checkpoints/step-00000010/`` and ``export/``, with a critic ``export_critic/``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_engine.checkpoint.publication import (
    publish_folder,
    publish_text,
    remove_folder,
    remove_leftovers,
)
from archon_engine.checkpoint.step_folders import checkpoints_of, saved_steps, step_folder
from archon_train.run.lock import sole_writer


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Use ``open`` to create the folder or to reopen it.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def open(cls, fileroot: str | Path, experiment_name: str, trial_name: str, *, resume: bool = False) -> RunFolder:
        """Create the folder of a run, or reopen it to resume; remove temporary files of a crashed write.

        Args:
            fileroot: ``cluster.fileroot``; ``~`` is the home folder.
            experiment_name: name of the group of runs.
            trial_name: name of the run.
            resume: allow a folder that holds a run already.

        Raises:
            ConfigError: a name is not a valid folder name, the folder cannot be created, or it holds a run already and
                ``resume`` is false.
        """
        folder = cls.at(fileroot, experiment_name, trial_name)
        if not resume:
            folder._refuse_earlier_run()
        folder._make()
        remove_leftovers(folder.checkpoints)
        remove_leftovers(folder.path)
        return folder

    @classmethod
    def at(cls, fileroot: str | Path, experiment_name: str, trial_name: str) -> RunFolder:
        """The folder of a run, which need not exist; creates nothing.

        Raises:
            ConfigError: a name is not a valid folder name.
        """
        for option, name in (("experiment_name", experiment_name), ("trial_name", trial_name)):
            if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
                raise ConfigError(f"{option}: found {name!r}; allowed is the name of one folder; choose another name")
        return cls(Path(fileroot).expanduser() / experiment_name / trial_name)

    @classmethod
    @contextmanager
    def hold(
        cls, fileroot: str | Path, experiment_name: str, trial_name: str, *, resume: bool = False
    ) -> Iterator[RunFolder]:
        """``open`` and lock the folder for writing until the block ends.

        Raises:
            ConfigError: as ``open``; or another process holds the lock.
        """
        folder = cls.at(fileroot, experiment_name, trial_name)
        folder._make()
        with sole_writer(folder.path):
            yield cls.open(fileroot, experiment_name, trial_name, resume=resume)

    @property
    def config(self) -> Path:
        """The resolved configuration, ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def decisions(self) -> Path:
        """The recorded decisions, ``decisions.json``."""
        return self.path / "decisions.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per row, ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return checkpoints_of(self.path)

    @property
    def export(self) -> Path:
        """The trained model in Hugging Face format."""
        return self.path / "export"

    def export_of(self, role: str) -> Path:
        """The model of another role in Hugging Face format, such as the critic."""
        return self.path / f"export_{role}"

    def checkpoint_path(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` training steps, which need not exist."""
        return step_folder(self.path, step)

    def checkpoint_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return saved_steps(self.path)

    def latest_step(self) -> int | None:
        """The step of the last complete checkpoint; ``None`` if there is none."""
        return max(self.checkpoint_steps(), default=None)

    def latest_checkpoint(self) -> Path | None:
        """The last complete checkpoint; ``None`` if there is none."""
        step = self.latest_step()
        return None if step is None else self.checkpoint_path(step)

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield an empty folder to write a checkpoint into; published atomically, see ``publish_folder``."""
        with publish_folder(self.checkpoint_path(step)) as folder:
            yield folder

    def remove_superseded(self, *, keep_last: int | None, keep_every: int | None) -> list[int]:
        """Remove superseded checkpoints; returns their steps. Call it after a new checkpoint is published."""
        steps = superseded(self.checkpoint_steps(), keep_last=keep_last, keep_every=keep_every)
        for step in steps:
            remove_folder(self.checkpoint_path(step))
        return steps

    @contextmanager
    def exporting(self, role: str | None = None) -> Iterator[Path]:
        """Yield an empty folder to write the export into; published atomically, see ``publish_folder``.

        Args:
            role: of the model, such as ``critic``; ``None`` for the trained model of the run.
        """
        with publish_folder(self.export if role is None else self.export_of(role)) as folder:
            yield folder

    def write_config(self, text: str) -> None:
        """Write the resolved configuration."""
        publish_text(self.config, text)

    def write_decisions(self, decisions: Iterable[Decision]) -> None:
        """Write the recorded decisions as a JSON list of objects."""
        publish_text(self.decisions, json.dumps([asdict(decision) for decision in decisions], indent=2) + "\n")

    def _make(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run folder {self.path}: cannot create it ({error.strerror}); set cluster.fileroot to a writable "
                "folder"
            ) from error

    def set_aside(self) -> Path | None:
        """If the folder holds a run, rename it to ``<name>.1`` or the next free number; return the new path.

        Raises:
            ConfigError: another process is writing to it.
        """
        if not self._traces():
            return None
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := self.path.with_name(f"{self.path.name}.{n}")).exists())
        with sole_writer(self.path):
            self.path.rename(aside)
        return aside

    def _traces(self) -> list[str]:
        """Traces of an earlier run in the folder, as phrases."""
        found = []
        if self.metrics.is_file() and self.metrics.stat().st_size:
            found.append(self.metrics.name)
        if (step := self.latest_step()) is not None:
            found.append(f"a checkpoint of step {step}")
        return found

    def _refuse_earlier_run(self) -> None:
        found = self._traces()
        if found:
            raise ConfigError(
                f"run folder {self.path}: found an earlier run ({' and '.join(found)}); continue it with --resume, "
                "rename it with --restart, or choose another trial_name"
            )


def superseded(steps: Collection[int], *, keep_last: int | None, keep_every: int | None) -> list[int]:
    """The steps whose checkpoints are not kept, ascending; never the last one.

    Args:
        steps: of all complete checkpoints.
        keep_last: number of recent checkpoints to keep; ``None`` keeps all.
        keep_every: also keep the checkpoints of steps that are multiples of this; ``None`` keeps no others.

    >>> superseded([10, 20, 30, 40, 50], keep_last=2, keep_every=20)
    [10, 30]
    """
    if keep_last is None:
        return []
    assert keep_last > 0, "a run without a checkpoint cannot be resumed"
    older = sorted(steps)[:-keep_last]
    return [step for step in older if keep_every is None or step % keep_every]
