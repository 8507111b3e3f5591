"""Checks whether a run that restarts after a failure has checkpoints to restart from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.decisions import Decision


def restarts_without_checkpoints(trainer: Any) -> Iterator[Decision]:
    """The decision about a run that resumes or restarts but writes no checkpoint on the way.

    Args:
        trainer: the section ``trainer``.
    """
    asked = {
        "trainer.auto_resume": "true" if trainer.auto_resume else "",
        "trainer.max_restarts": str(trainer.max_restarts) if trainer.max_restarts else "",
    }
    options = [option for option, value in asked.items() if value]
    if options and trainer.save_every == 0:
        yield Decision(
            ", ".join(options),
            ", ".join(asked[option] for option in options),
            "a restart repeats all steps",
            "trainer.save_every=0 writes no checkpoint before the end of the run; set trainer.save_every",
        )
