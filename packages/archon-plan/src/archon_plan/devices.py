"""Finds devices: in the table (``device_table``), or in a file, which ``calibrate`` writes.

Every figure can be replaced by a setting such as ``efficiency.dense=0.6``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from archon_core.errors import ConfigError, UnknownNameError, did_you_mean
from archon_plan.device import Device, Efficiency, figures_of
from archon_plan.device_table import DEVICES

__all__ = ["Device", "Efficiency", "find_device", "override", "read_device", "write_device"]

FILE_ENDINGS = (".yaml", ".yml", ".json")


def find_device(name: str) -> Device:
    """The device of the table with this name, or that of a YAML or JSON file.

    A file names a device of the table as ``base`` and the figures to replace, or gives all figures itself.

    Raises:
        UnknownNameError: no device of the table has that name.
        ConfigError: the file does not exist, cannot be read or has wrong figures.
    """
    if name.endswith(FILE_ENDINGS):
        return read_device(Path(name))
    known = {device.name: device for device in DEVICES}
    if name.lower() not in known:
        raise UnknownNameError(
            f"device: found {name!r}{did_you_mean(name.lower(), list(known))}; allowed are {', '.join(known)}, or a "
            "file that ends in .yaml or .json; for a device that is missing, calibrate on it"
        )
    return known[name.lower()]


def override(device: Device, settings: Iterable[str]) -> Device:
    """``device`` with figures replaced by settings such as ``efficiency.dense=0.6``.

    Raises:
        ConfigError: a setting cannot be parsed, or its figure does not exist or has an impossible value.
    """
    figures = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"device {device.name}: found setting {setting!r}; allowed is FIGURE=NUMBER, as in efficiency.dense=0.6"
            )
        figures[name.strip()] = value.strip()
    return device.with_figures(figures, source="--set")


def read_device(path: Path) -> Device:
    """Read a device from a YAML or JSON file.

    Raises:
        ConfigError: the file does not exist, cannot be read or has wrong figures.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"device file {path}: cannot read it ({error}); give a YAML or JSON file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"device file {path}: found {type(content).__name__}; allowed is a mapping of figures")
    content = dict(content)
    sources = content.pop("sources", None) or {}
    base = content.pop("base", None)
    figures = _flattened(content)
    name = str(figures.pop("name", path.stem))
    if base is None:
        device = _from_scratch(name, figures, path)
    else:
        device = replace(find_device(str(base)), name=name).with_figures(figures, source=str(path))
    stated = {str(figure): str(source) for figure, source in sources.items()}
    return replace(device, sources=tuple({**dict(device.sources), **stated}.items()))


def write_device(device: Device, path: Path) -> None:
    """Write all figures and their sources as YAML, for ``read_device``."""
    content: dict[str, Any] = {"name": device.name}
    for name, value in figures_of(device).items():
        outer, _, inner = name.partition(".")
        if inner:
            content.setdefault(outer, {})[inner] = value
        else:
            content[outer] = value
    content["sources"] = {name: source for name, _, source in device.rows()}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _flattened(content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": number for inner, number in value.items()}
        else:
            flat[str(name)] = value
    return flat


def _from_scratch(name: str, figures: Mapping[str, Any], path: Path) -> Device:
    needed = [each.name for each in fields(Device) if each.name not in _OPTIONAL]
    needed += [f"efficiency.{share}" for share in ("dense", "grouped", "attention")]
    if missing := [figure for figure in needed if figure not in figures]:
        raise ConfigError(
            f"device file {path}: found no {', '.join(missing)}; give all figures, or a device of the table as base"
        )
    empty = Device(name, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, Efficiency(1, 1, 1))
    return empty.with_figures(figures, source=str(path))


_OPTIONAL = (
    "name",
    "efficiency",
    "launch",
    "disk_bandwidth",
    "kind",
    "cores",
    "context_bytes",
    "communicator_bytes",
    "allocator_share",
    "sources",
)
