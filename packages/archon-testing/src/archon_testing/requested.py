"""What ``archon verify`` was asked to do: models and layouts as users write them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.errors import LayoutError, ModelError, UnknownNameError
from archon_core.layout import Layout, backend_table, parse_layout, refuse_axes
from archon_core.plugins import InferenceEngineSpec, ModelSpec, ScheduleSpec, TrainEngineSpec, registry
from archon_core.plugins.specs import load_target
from archon_testing.worlds import MOST_RANKS

DEFAULT_BACKEND = "archon"
_OPTION = "--layout"


@dataclass(frozen=True)
class RequestedLayout:
    """A layout to verify.

    Attributes:
        layout: parsed.
        schedule: the pipeline schedule's own name; ``None`` when none was written.
    """

    layout: Layout
    schedule: str | None = None

    def __str__(self) -> str:
        return str(self.layout) if self.schedule is None else f"{self.layout}-{self.schedule}"

    def check_runnable(self) -> None:
        """Raise LayoutError for axes that the engine cannot run as it is installed."""
        refuse_axes(self.layout, registry().get(TrainEngineSpec, self.layout.backend).axes, option=_OPTION)


def read_layouts(texts: Iterable[str]) -> list[RequestedLayout]:
    """Parse layouts; one that is asked for again is there once.

    Raises:
        LayoutError, UnknownNameError: as ``read_layout`` does.
    """
    return list(dict.fromkeys(read_layout(text) for text in texts))


def read_layout(text: str) -> RequestedLayout:
    """Parse ``[archon:]DIMS[-SCHEDULE]``, such as ``d2t2`` or ``p2-ZBV``.

    Raises:
        LayoutError: malformed; of an engine that does not train; of more ranks than a world has; or with a schedule
            and without pipeline parallelism.
        UnknownNameError: no plugin provides the schedule or the engine.
    """
    backend, colon, rest = text.partition(":")
    if not colon or "(" in backend:
        backend, rest = DEFAULT_BACKEND, text
    dims, dash, schedule = rest.partition("-")
    plugins = registry()
    backends = backend_table(plugins.all(TrainEngineSpec), plugins.all(InferenceEngineSpec))
    layout = parse_layout(f"{backend}:{dims}", backends=backends, option=_OPTION)
    if layout.kind != "train":
        raise LayoutError(
            f"{_OPTION} {text!r}: found the engine {layout.backend!r}, which generates; allowed are engines that "
            f"train; write {DEFAULT_BACKEND}:{dims or 'd2'}"
        )
    plugins.get(TrainEngineSpec, layout.backend)
    if layout.world_size > MOST_RANKS:
        raise LayoutError(
            f"{_OPTION} {text!r}: found {layout.world_size} ranks; a world has at most {MOST_RANKS}; every axis shows "
            "its mistakes at size 2 already: take a smaller size of each"
        )
    if not dash:
        return RequestedLayout(layout)
    if layout.dims["p"] == 1:
        raise LayoutError(
            f"{_OPTION} {text!r}: found the schedule {schedule!r} without pipeline parallelism; a schedule needs p "
            f"of at least 2; write {dims}, or p2-{schedule or 'ZBV'}"
        )
    return RequestedLayout(layout, plugins.get(ScheduleSpec, schedule).name)


def read_model(name: str) -> tuple[ModelSpec, Mapping[str, Any]]:
    """The spec and the configuration for MODEL: a registered model's tiny one, or a ``config.json``'s content.

    Args:
        name: of a registered model, or the path of a ``config.json`` or of a folder that holds one.

    Raises:
        UnknownNameError: nothing of this name is installed or exists, or nothing serves the file's model type.
        ModelError: the file is no configuration, or the model has no configuration for tests.
    """
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    known = [spec.name for spec in registry().all(ModelSpec)]
    if name not in known and file.is_file():
        entries = _read_entries(file)
        return registry().model_for(entries["model_type"]), entries
    if "/" in name or name.endswith(".json"):
        raise UnknownNameError(
            f"model {name!r}: found no such file; give the path of a config.json, or one of {', '.join(known)}"
        )
    spec = registry().get(ModelSpec, name)
    if not spec.tiny_config:
        raise ModelError(
            f"model {name!r}: its spec names no configuration for tests (tiny_config); give the path of a small "
            "config.json of this architecture"
        )
    return spec, load_target(spec.tiny_config, origin=spec.origin)()


def _read_entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: found no readable JSON ({error}); give a Hugging Face config.json") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("model_type"), str):
        raise ModelError(f"{file}: found no model_type; give a Hugging Face config.json")
    return entries
