"""Writes rotary settings under the names of transformers 4 and its contemporaries vLLM and SGLang.

transformers 5 writes ``rope_parameters`` only. Older readers look for ``rope_theta``, ``rope_scaling`` and names of
single families, and silently use a default if one is missing. transformers 5 still reads the old names. So this module
probes the configuration class: it sets one old name to a marker value and looks where the marker appears in
``rope_parameters``. No list of families is needed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

_PROBE = 0.4375
"""The marker: no configuration has this value, and it is valid as a base of frequencies and as a share of the head."""

_PROBED_SCALING: dict[str, Any] = {"rope_type": "linear", "factor": 7.4375}

Leaf = tuple[str, ...]
"""Path of a value in ``rope_parameters``: its name, preceded by the layer type if each type has its own set."""


def older_rope_entries(config: PreTrainedConfig) -> dict[str, Any]:
    """Entries to write beside ``rope_parameters``; empty for a model without rotation, or of a family that is newer
    than the old names.

    Logs a warning for settings that older readers cannot express, such as a scaling of only some layer types.
    """
    ours = getattr(config, "rope_parameters", None)
    if not ours:
        return {}
    with _quiet():
        entries, covered = _found_entries(config, ours)
        agrees = _parsed(config, {**entries, "rope_parameters": ours}) == ours
        lost = _lost(config, ours, covered, entries) if entries else []
    if not agrees:
        logger.warning(
            "config.json: written without the rotary entries of older versions: %s in transformers 5 would read "
            "them as other values than rope_parameters; use this checkpoint with transformers 5 or later",
            type(config).__name__,
        )
        return {}
    if lost:
        logger.warning(
            "config.json: transformers before version 5 cannot express rope_parameters %s and would use other values; "
            "use this checkpoint with transformers 5 or later",
            ", ".join(lost),
        )
    return entries


def repeats_rope_value(config: PreTrainedConfig, name: str) -> bool:
    """Whether the entry ``name`` has the value that ``rope_parameters`` has under this name, for all layers alike."""
    values = [value for place, value in _leaves(getattr(config, "rope_parameters", None) or {}) if place[-1] == name]
    return bool(values) and all(value == getattr(config, name) for value in values)


def _found_entries(config: PreTrainedConfig, ours: Mapping[str, Any]) -> tuple[dict[str, Any], set[Leaf]]:
    """Old names with their values, and the paths in ``ours`` that they cover."""
    leaves = dict(_leaves(ours))
    entries: dict[str, Any] = {}
    covered: set[Leaf] = set()
    for name in _candidates(config):
        probed = _parsed(config, {name: _PROBE, "rope_parameters": _bare(ours)})
        places = [place for place, value in _leaves(probed) if value == _PROBE]
        values = [leaves[place] for place in places if place in leaves]
        if values and all(value == values[0] for value in values):
            entries[name] = values[0]
            covered.update(places)
    probed = _parsed(config, {"rope_scaling": _PROBED_SCALING})
    scaled = [place[:-1] for place, value in _leaves(probed) if value == _PROBED_SCALING["factor"]]
    if scaled:
        sets = [{p[-1]: v for p, v in leaves.items() if p[:-1] == place and p not in covered} for place in scaled]
        entries["rope_scaling"] = None if sets[0].get("rope_type", "default") == "default" else sets[0]
        if all(found == sets[0] for found in sets):
            covered.update(place for place in leaves if place[:-1] in scaled)
    return entries, covered


def _lost(
    config: PreTrainedConfig, ours: Mapping[str, Any], covered: set[Leaf], entries: Mapping[str, Any]
) -> list[str]:
    """Paths of values that no old name covers and that older readers would get wrong. They use a default, or the value
    of an old entry of the same name."""
    assumed = dict(_leaves(_parsed(config, entries)))
    return [
        ".".join(place)
        for place, value in _leaves(ours)
        if place not in covered and assumed.get(place) != value and entries.get(place[-1]) != value
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers while configurations are probed."""
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity()
    of_transformers.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        of_transformers.set_verbosity(before)


def _candidates(config: PreTrainedConfig) -> list[str]:
    """String constants in the methods by which the class reads old names; these names are among them."""
    methods = (vars(parent).get("convert_rope_params_to_dict") for parent in type(config).__mro__)
    codes: list[CodeType] = [method.__code__ for method in methods if method is not None]
    texts = {text for code in codes for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    return sorted(texts - {"rope_scaling", "rope_parameters", "rope_type"})


def _parsed(config: PreTrainedConfig, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """``rope_parameters`` of a configuration like ``config`` in which ``entries`` replace its rotary settings."""
    rest = {name: value for name, value in config.to_dict().items() if name not in ("rope_parameters", *entries)}
    try:
        return type(config)(**rest, **copy.deepcopy(dict(entries))).rope_parameters or {}
    except Exception:  # validators of transformers raise their own types; such a name covers nothing
        return {}


def _bare(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same sets, reduced to unscaled rotations."""
    sets = {name: _bare(value) for name, value in parameters.items() if isinstance(value, Mapping)}
    return sets or {"rope_type": "default"}


def _leaves(parameters: Mapping[str, Any], above: Leaf = ()) -> Iterator[tuple[Leaf, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value
