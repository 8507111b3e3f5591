"""Resolves MODEL: the name of a registered model, or a ``config.json``, shrunk if it is large. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError, ModelError, UnknownNameError
from archon_core.plugins import ModelSpec, registry
from archon_testing.small_config import LARGE, changes, deepen, estimated_parameters, shrink, with_layers

ENOUGH_LAYERS = 2
"""A first and a last layer suffice to show errors of sharding within layers."""


@dataclass(frozen=True)
class RequestedModel:
    """A model to verify.

    Attributes:
        spec: the model spec.
        entries: of its ``config.json``.
        as_given: whether the user chose the sizes; otherwise layouts may run it with fewer or more layers.
        changes: reduced sizes, such as ``hidden_size 4096 -> 32``.
        remarks: further remarks for the user, as sentences.
    """

    spec: ModelSpec
    entries: Mapping[str, Any]
    as_given: bool = False
    changes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def entries_for(self, n_stages: int) -> Mapping[str, Any]:
        """The configuration for a layout with ``n_stages`` pipeline stages: at least one layer per stage."""
        if self.as_given or "num_hidden_layers" not in self.entries:
            return self.entries
        return with_layers(self.entries, ENOUGH_LAYERS) if n_stages == 1 else deepen(self.entries, n_stages)


def read_model(name: str, *, as_is: bool = False, run_as: str | None = None) -> RequestedModel:
    """The model ``name``: a registered model with its test configuration, or the model of a ``config.json``.

    A configuration with an estimated 20 million parameters or more keeps its structure and gets test sizes.

    Args:
        name: of a registered model, or path of a ``config.json`` or its folder.
        as_is: keep the sizes of a file, however large.
        run_as: name of the model spec; ``None`` for the spec of the model type or, with a remark, the spec that takes
            any model type.

    Raises:
        UnknownNameError: the name is neither installed nor a file, or no spec runs the file's model type.
        ModelError: the file is not a configuration, or the model has no test configuration.
        ConfigError: ``as_is`` with a registered model.
    """
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    known = [spec.name for spec in registry().all(ModelSpec)]
    if name not in known and file.is_file():
        entries = _read_entries(file)
        spec, remarks = _spec_for(entries["model_type"], run_as)
        parameters = estimated_parameters(entries)
        if as_is or parameters <= LARGE:
            return RequestedModel(spec, entries, as_given=True, remarks=remarks)
        small = shrink(entries, _tiny(spec, f"{file} describes some {parameters / 1e6:,.0f} million parameters"))
        return RequestedModel(spec, small, changes=changes(entries, small), remarks=remarks)
    if name not in known and (path.is_dir() or "/" in name or name.endswith(".json")):
        found = "no config.json in that folder" if path.is_dir() else "no such file"
        raise UnknownNameError(
            f"model {name!r}: found {found}; give the path of a config.json, or one of {', '.join(known)}"
        )
    spec = registry().get(ModelSpec, name)
    if as_is:
        raise ConfigError(
            f"--as-is: found it with the registered model {name!r}, which has sizes for tests only; give the path of a "
            "config.json, or leave --as-is out"
        )
    entries = _tiny(spec, f"model {name!r}")
    if run_as in (None, name):
        return RequestedModel(spec, entries, remarks=_of_rounding(spec))
    chosen, remarks = _spec_for(entries["model_type"], run_as)
    return RequestedModel(chosen, entries, remarks=remarks)


def _spec_for(model_type: str, run_as: str | None) -> tuple[ModelSpec, tuple[str, ...]]:
    """What runs a model type, and what is to be said of that."""
    served = [spec.name for spec in registry().all(ModelSpec) if model_type in spec.model_types]
    takers = [spec for spec in registry().all(ModelSpec) if spec.takes_any]
    if run_as is not None or served or len(takers) != 1:
        spec = registry().model_for(model_type, run_as)
        return spec, _of_rounding(spec)
    [spec] = takers
    chosen = (
        f"no installed package serves model type {model_type!r}; verified is model {spec.name!r}, which takes any: "
        f"what actor.archon.model={spec.name} runs"
    )
    return spec, (chosen, *_of_rounding(spec))


def _of_rounding(spec: ModelSpec) -> tuple[str, ...]:
    return (f"compared in float32 alone: {spec.rounds_inside}",) if spec.rounds_inside else ()


def _tiny(spec: ModelSpec, what: str) -> dict[str, Any]:
    if not spec.tiny_config:
        raise ModelError(
            f"{what}: the spec of {spec.name!r} names no configuration for tests (tiny_config), from which small sizes "
            "could be taken; give a small config.json of this architecture, or a large one with --as-is"
        )
    return load_target(spec.tiny_config, origin=spec.origin)()


def _read_entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: found no readable JSON ({error}); give a Hugging Face config.json") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("model_type"), str):
        raise ModelError(f"{file}: found no model_type; give a Hugging Face config.json")
    return _language_model(entries)


def _language_model(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of the language model in a composite, if one spec serves both types; otherwise ``entries``."""
    text = entries.get("text_config")
    types = {entries["model_type"], text.get("model_type")} if isinstance(text, dict) else set()
    serves_both = any(types <= set(spec.model_types) for spec in registry().all(ModelSpec)) if types else False
    return text if isinstance(text, dict) and serves_both else entries
