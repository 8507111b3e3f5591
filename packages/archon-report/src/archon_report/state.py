"""Whether a run goes on, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archon_core.run_files.starts import Start

Kind = Literal["running", "finished", "interrupted", "failed", "stopped"]


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        kind: ``stopped`` for a run that nobody trains and that left no record of its end, such as a killed one.
        text: a phrase for readers.
    """

    kind: Kind
    text: str


def total_steps(config: Mapping[str, Any], starts: Sequence[Start] = ()) -> int | None:
    """The steps of the whole run: what the configuration asks for, or what the trainer has counted from the data.

    ``None`` if the data decide and training has not begun.
    """
    trainer = config.get("trainer")
    found = trainer.get("max_steps") if isinstance(trainer, Mapping) else None
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    counted = [start.total_steps for start in starts if start.total_steps is not None]
    return counted[-1] if counted else None


def state_of(*, held: bool | None, starts: Sequence[Start], step: int, total: int | None) -> State:
    """The state of a run.

    Args:
        held: as ``is_held`` returns it.
        starts: of the run, in order.
        step: the last one in its metrics.
        total: the steps that it should do; ``None`` if unknown.
    """
    last = starts[-1] if starts else None
    if held:
        return State("running", "running")
    if last is not None and last.ending is not None:
        texts = {
            "finished": "finished",
            "interrupted": f"interrupted after step {step}",
            "failed": f"failed after step {step}" + (f": {last.error.splitlines()[0]}" if last.error else ""),
        }
        return State(last.ending, texts[last.ending])
    if total is not None and step >= total:
        return State("finished", "finished")
    if held is None and last is not None:
        return State("running", "running, as far as this system can tell")
    return State("stopped", f"stopped after step {step}; its process left no record of why")
