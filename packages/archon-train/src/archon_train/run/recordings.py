"""Writes what engines record of single steps to the run folder, and shows logs among it to the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from archon_core.contracts.engine import StepRecording
from archon_engine.checkpoint.publication import publish_text
from archon_train.run.series_file import SeriesFile


@dataclass(frozen=True)
class Recordings:
    """Takes the ``recordings`` of every ``StepStats``.

    Attributes:
        folder: the run folder; ``None`` writes no files, as on all ranks but the first.
        note: shows lines to the user, such as ``Progress.note``; ``None`` shows none.
    """

    folder: Path | None = None
    note: Callable[[str], None] | None = None
    _series: dict[str, SeriesFile] = field(default_factory=dict, init=False, repr=False, compare=False)

    def take(self, recordings: Iterable[StepRecording]) -> None:
        """Write every recording to its file, and show it if it is a log."""
        for recording in recordings:
            if recording.is_log and self.note is not None:
                self.note(recording.text)
            if self.folder is None:
                continue
            if recording.series_step is not None:
                series = self._series.setdefault(recording.file, SeriesFile(self.folder / recording.file))
                series.add(recording.series_step, recording.text)
            elif recording.is_log:
                with (self.folder / recording.file).open("a", encoding="utf-8") as file:
                    file.write(recording.text + "\n")
            else:
                publish_text(self.folder / recording.file, recording.text)
