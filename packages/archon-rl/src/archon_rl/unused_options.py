"""Decisions about options that a run does not use (``unused_rows``). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import RunOutline
from archon_rl.unused_rows import TABLE, Run, Unused


def unused_options(outline: RunOutline) -> list[Decision]:
    """A decision for every option that the user set and the run does not use; one per section."""
    run, explained = Run(outline), set[str]()
    decisions = []
    dataset = outline.dataset
    rows = TABLE
    if dataset is not None and dataset.unused:
        names = tuple(f"data.{name}" for name in dataset.unused)
        rows = (Unused(names, f"the data set {dataset.name} does not read it", lambda _: True), *rows)
    for row in rows:
        if not row.when(run):
            continue
        for option in row.options:
            if any(option == done or option.startswith(f"{done}.") for done in explained):
                continue
            requested = changed(outline.config, option)
            if requested is None:
                continue
            explained.add(option)
            reason = row.reason.format(algorithm=outline.algorithm.name)
            decisions.append(Decision(option, requested, "not used", reason))
    return decisions


def changed(config: Any, option: str) -> str | None:
    """The value of an option, or the options of a section, that differ from the defaults; ``None`` if none does."""
    parent, _, name = option.rpartition(".")
    section = config
    for part in filter(None, parent.split(".")):
        section = getattr(section, part, None)
        if section is None:
            return None
    if not hasattr(section, name):
        return None
    value = getattr(section, name)
    default = getattr(type(section)(), name)
    if is_dataclass(value) and not isinstance(value, type):
        found = dict(_differences(value, type(value)() if default is None else default))
        shown = ", ".join(f"{key}={entry}" for key, entry in found.items())
        return shown or ("a section" if default is None else None)
    if value == default or (value is None and is_dataclass(default)):
        return None  # a section that is left out asks for nothing
    return _shown(value)


def _differences(section: Any, default: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for f in fields(section):
        value, usual = getattr(section, f.name), getattr(default, f.name)
        name = f"{path}{f.name}"
        if is_dataclass(value) and not isinstance(value, type) and usual is not None:
            yield from _differences(value, usual, f"{name}.")
        elif value != usual:
            yield name, "a section" if is_dataclass(value) else _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
