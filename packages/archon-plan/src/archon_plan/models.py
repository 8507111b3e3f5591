"""Finds the entries of a model's ``config.json``: in a file, in a folder, or in a table of well-known models.

The table, ``known_models.json``, holds the entries that determine sizes, so that a plan needs no download.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archon_core.contracts.model import ModelSpec
from archon_core.errors import ConfigError, PluginError, did_you_mean
from archon_core.models.anatomy import ModelAnatomy
from archon_core.models.json_file import read_entries


@dataclass(frozen=True)
class NamedModel:
    """A model to plan.

    Attributes:
        name: as the user named it.
        entries: of its ``config.json``.
        source: where they come from: a file, or ``table of known models``.
    """

    name: str
    entries: Mapping[str, Any]
    source: str

    @property
    def model_type(self) -> str:
        """The architecture. Raises ConfigError: the entries do not name one."""
        found = self.entries.get("model_type")
        if isinstance(found, str) and found:
            return found
        raise ConfigError(
            f"{self.source}: found model_type {found!r}; allowed is the name of an architecture, such as qwen3; add it"
        )


KNOWN = "table of known models"


@functools.cache
def known_models() -> Mapping[str, Mapping[str, Any]]:
    """The table: short name (``qwen3-8b``) and hub id (``Qwen/Qwen3-8B``), in lower case -> entries.

    Hub ids include models of equal sizes, such as instruction-tuned ones.
    """
    table = json.loads(files("archon_plan").joinpath("known_models.json").read_text(encoding="utf-8"))
    found: dict[str, Mapping[str, Any]] = {}
    for row in table:
        for hub_id in (row["hub"], *row["same_sizes"]):
            for name in (hub_id, hub_id.rpartition("/")[2]):
                found[name.lower()] = MappingProxyType(row["config"])
    return MappingProxyType(found)


def short_names() -> list[str]:
    """The names of the table, one per size."""
    table = json.loads(files("archon_plan").joinpath("known_models.json").read_text(encoding="utf-8"))
    return [row["hub"].rpartition("/")[2].lower() for row in table]


def find_model(name: str, *, option: str = "--model") -> NamedModel:
    """The model of a short name, a hub id, a ``config.json`` or a folder with one.

    Args:
        name: the text that the user wrote.
        option: the option that holds it, for messages.

    Raises:
        ConfigError: there is no such file, and the table does not have the name.
        ModelError: the file cannot be read.
    """
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        return NamedModel(name, read_entries(file), str(file))
    entries = known_models().get(name.lower())
    if entries is not None:
        return NamedModel(name, entries, KNOWN)
    hint = did_you_mean(name.lower(), list(known_models()))
    where = f"no config.json in the folder {name!r}" if path.is_dir() else f"{name!r}, which is no file here"
    fix = "give the model's config.json, or a folder that has it"
    if option != "--model":
        fix += ", by --model"
    raise ConfigError(
        f"{option}: found {where} and not in the {KNOWN}{hint}; allowed are {', '.join(short_names())}, their hub ids, "
        f"or any config.json; {fix}"
    )


def read_anatomy(spec: ModelSpec, entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of a model.

    Raises:
        PluginError: the package of the model cannot plan it.
        ModelError: an entry is missing or wrong.
    """
    if not spec.anatomy:
        raise PluginError(
            f"model {spec.name!r}: found no anatomy in its package {spec.origin or 'of this process'}, so it cannot be "
            "planned; allowed are models whose ModelSpec has one (`archon models`); add an anatomy to the spec"
        )
    anatomy: ModelAnatomy = spec.load_part("anatomy")(entries, critic=critic)
    return anatomy
