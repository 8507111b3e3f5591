"""Rotary settings as transformers 4, vLLM and SGLang of its time read them, beside ``rope_parameters``.

transformers 5 writes ``rope_parameters`` alone; older readers take ``rope_theta``, ``rope_scaling`` and names of single
families, and a default where these are missing, without a word. transformers 5 also reads the old names, so the class
of a configuration is asked which names it knows: each is given a value, and where the value appears in
``rope_parameters`` is what the name stands for. So no family is listed here.
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
"""A value that no configuration has by itself; valid as a frequency's base and as a share of the head."""

_PROBED_SCALING: dict[str, Any] = {"rope_type": "linear", "factor": 7.4375}

Leaf = tuple[str, ...]
"""Where a value stands in ``rope_parameters``: its name, behind the layers' type where there is one set for each."""


def older_rope_entries(config: PreTrainedConfig) -> dict[str, Any]:
    """Entries to write beside ``rope_parameters``; none for a model without rotation, or of a family that is younger
    than these names.

    What older readers cannot express, such as a scaling for layers that have none there, is logged as a warning.
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
            "config.json: %s of transformers 5 reads the names of older versions otherwise than rope_parameters, so "
            "they are left out; use this checkpoint with transformers 5 and later",
            type(config).__name__,
        )
        return {}
    if lost:
        logger.warning(
            "config.json: versions of transformers before 5 have no name for rope_parameters %s and would assume "
            "something else; use this checkpoint with transformers 5 and later",
            ", ".join(lost),
        )
    return entries


def repeats_rope_value(config: PreTrainedConfig, name: str) -> bool:
    """Whether the entry ``name`` has the value that ``rope_parameters`` has under this name, for all layers alike."""
    values = [value for place, value in _leaves(getattr(config, "rope_parameters", None) or {}) if place[-1] == name]
    return bool(values) and all(value == getattr(config, name) for value in values)


def _found_entries(config: PreTrainedConfig, ours: Mapping[str, Any]) -> tuple[dict[str, Any], set[Leaf]]:
    """Older names with their values, and the places in ``ours`` that they stand for."""
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
    """Values that no older name stands for, unless they are what a reader assumes: the default, or the name's value."""
    assumed = dict(_leaves(_parsed(config, entries)))
    return [
        ".".join(place)
        for place, value in _leaves(ours)
        if place not in covered and assumed.get(place) != value and entries.get(place[-1]) != value
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs of the configurations that are tried."""
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity()
    of_transformers.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        of_transformers.set_verbosity(before)


def _candidates(config: PreTrainedConfig) -> list[str]:
    """Texts in the code by which the class reads old names, the names among them."""
    methods = (vars(parent).get("convert_rope_params_to_dict") for parent in type(config).__mro__)
    codes: list[CodeType] = [method.__code__ for method in methods if method is not None]
    texts = {text for code in codes for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    return sorted(texts - {"rope_scaling", "rope_parameters", "rope_type"})


def _parsed(config: PreTrainedConfig, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """``rope_parameters`` of a configuration like ``config``, with these entries in the place of its own."""
    rest = {name: value for name, value in config.to_dict().items() if name not in ("rope_parameters", *entries)}
    try:
        return type(config)(**rest, **copy.deepcopy(dict(entries))).rope_parameters or {}
    except Exception:  # validators of transformers raise their own types; such a name stands for nothing
        return {}


def _bare(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same sets, of unscaled rotations with nothing else written."""
    sets = {name: _bare(value) for name, value in parameters.items() if isinstance(value, Mapping)}
    return sets or {"rope_type": "default"}


def _leaves(parameters: Mapping[str, Any], above: Leaf = ()) -> Iterator[tuple[Leaf, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value
