"""Decisions about options that a run does not use (``unused_rows``). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import RunOutline
from archon_rl.changed_options import changed
from archon_rl.run_parts import Run
from archon_rl.unused_rows import TABLE, Unused


def unused_options(outline: RunOutline) -> list[Decision]:
    """A decision for every option or section that differs from its default and that the run does not use."""
    run, usual = Run(outline), type(outline.config)()
    decisions: dict[str, Decision] = {}
    for row in (*_of_dataset(outline), *TABLE):
        if not row.when(run):
            continue
        for option in row.options:
            if any(option == known or option.startswith(f"{known}.") for known in decisions):
                continue
            requested = changed(outline.config, usual, option)
            if requested is not None:
                reason = row.reason.format(algorithm=outline.algorithm.name)
                decisions[option] = Decision(option, requested, "not used", reason)
    return [*decisions.values()]


def _of_dataset(outline: RunOutline) -> Iterator[Unused]:
    dataset = outline.dataset
    if dataset is not None and dataset.unused:
        options = tuple(f"data.{name}" for name in dataset.unused)
        yield Unused(options, f"the data set {dataset.name} reads no files", lambda _: True)
