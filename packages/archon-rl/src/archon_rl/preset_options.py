"""A preset beside a configuration file: which options the file sets, and which the preset sets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from typing import Any

from archon_core.config.loading import LoadedConfig
from archon_core.config.rules import written_value
from archon_rl.named_settings import NamedSettings

AREAL_DEFAULT = "AReaL's default"
"""Source of an option that ``archon_train.areal`` fills in."""


@dataclass(frozen=True)
class PresetBesideFile:
    """The options of a preset, split by a file that wins over it.

    Attributes:
        overrides: of the options that the file does not write.
        kept: option -> the file's value and the preset's, of the others that differ.
    """

    overrides: tuple[str, ...]
    kept: dict[str, tuple[str, str]]


def beside_file(settings: NamedSettings, loaded: LoadedConfig) -> PresetBesideFile:
    """Split the options of ``settings`` by whether the file writes them.

    A file writes an option if it has a value for it, also null for a section around it. AReaL's defaults, which its
    files do not write, give way to the preset.
    """
    free, kept = [], {}
    for override in settings.overrides:
        option, _, asked = override.partition("=")
        if not _is_written(option, loaded):
            free.append(override)
            continue
        value = _value(loaded.config, option)
        if not _is_same(value, asked):
            kept[option] = (_shown(value), asked)
    return PresetBesideFile(tuple(free), kept)


def _is_written(option: str, loaded: LoadedConfig) -> bool:
    if option in loaded.explicit:
        return loaded.sources[option] != AREAL_DEFAULT
    section = option.rpartition(".")[0]
    while section:
        if section in loaded.explicit and _value(loaded.config, section) is None:
            return True
        section = section.rpartition(".")[0]
    return False


def _value(config: Any, option: str) -> Any:
    for key in option.split("."):
        config = config.get(key) if isinstance(config, dict) else getattr(config, key, None)
    return config


def _is_same(value: Any, text: str) -> bool:
    if text in ("null", "{}"):
        return (value is None) == (text == "null")
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(ValueError):  # such as gae_lambda, a number or a name
            return float(text) == value
        return False
    return _shown(value) == text


def _shown(value: Any) -> str:
    return "a section" if is_dataclass(value) else written_value(value)
