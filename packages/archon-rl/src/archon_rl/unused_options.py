"""Decisions about options that a run does not use (``unused_rows``). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import RunOutline
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


def changed(config: Any, usual: Any, option: str) -> str | None:
    """What the user asked for: the value of an option, or those of a section's options, that differ from the defaults.

    Args:
        config: the configuration, or one of its sections.
        usual: the same with default values.
        option: dotted name below ``config``.

    Returns:
        The values as text; ``None`` if they are the defaults, or if the configuration has no such option or section.
    """
    name, _, rest = option.partition(".")
    value, default = getattr(config, name, None), getattr(usual, name, None)
    if not is_dataclass(value):
        # A section that is left out asks for nothing.
        return None if rest or value == default or is_dataclass(default) else _shown(value)
    default = type(value)() if default is None else default  # type: ignore[operator]
    if rest:
        return changed(value, default, rest)
    found = ", ".join(f"{key}={entry}" for key, entry in _differences(value, default))
    return found or ("a section" if getattr(usual, name) is None else None)


def _differences(section: Any, usual: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for f in fields(section):
        value, default, name = getattr(section, f.name), getattr(usual, f.name), f"{path}{f.name}"
        if is_dataclass(value) and default is not None:
            yield from _differences(value, default, f"{name}.")
        elif value != default:
            yield name, "a section" if is_dataclass(value) else _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
