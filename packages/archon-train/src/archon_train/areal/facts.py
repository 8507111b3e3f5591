"""AReaL's configuration classes as data: which options it has, their types and defaults.

``options.tsv`` lists every option of every class, with the commit of AReaL that it describes.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from archon_core.config.raw import RawList, RawMapping, RawNode, RawScalar
from archon_core.config.typed import untyped

ROOTS = ("BaseExperimentConfig", "SFTConfig", "RWConfig", "DPOConfig", "PPOConfig")
"""The classes of whole files. An option of any of them is an option of AReaL's files."""

MOVED = {"teacher": "teacher.train"}
"""Sections of Archon's files -> the section in AReaL's files that has their options too."""

_WITHOUT_OWN_OPTIONS = {"TrainDatasetConfig": "_DatasetConfig"}
_NO_VALUE = object()
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Fact:
    """One option of one of AReaL's classes.

    Attributes:
        owner: class that defines it.
        name: its name.
        type: its annotation, as text.
        default: its default, as Python text; ``MISSING`` for a mandatory option.
    """

    owner: str
    name: str
    type: str
    default: str

    @property
    def shown_default(self) -> str:
        """The default as a YAML file would write it."""
        texts = {"None": "null", "True": "true", "False": "false", "dict": "{}", "list": "[]"}
        number = re.fullmatch(r"int\((\d+)\.0\)", self.default)
        return number[1] if number else texts.get(self.default, self.default.strip("'"))

    def is_default(self, node: RawNode) -> bool:
        """Whether ``node`` has the default value."""
        default = _value(self.default)
        return default is not _NO_VALUE and _same(default, _written(node))


@functools.cache
def classes() -> dict[str, dict[str, Fact]]:
    """Class -> its options, including inherited ones, by name."""
    lines = files("archon_train.areal").joinpath("options.tsv").read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[str, Fact]] = {}
    for line in lines:
        if line.startswith(("#", "class\t")):
            continue
        owner, bases, name, kind, default, _ = line.split("\t")
        inherited = {k: v for base in filter(None, bases.split(", ")) for k, v in found[base].items()}
        found.setdefault(owner, inherited)[name] = Fact(owner, name, kind, default)
    return found | {name: found[base] for name, base in _WITHOUT_OWN_OPTIONS.items()}


def facts(path: str) -> tuple[Fact, ...]:
    """AReaL's facts about a dotted name: several if its classes differ, none if it has no such option."""
    section, _, rest = path.partition(".")
    return _facts(path) or (_facts(f"{MOVED[section]}.{rest}") if rest and section in MOVED else ())


def _facts(path: str) -> tuple[Fact, ...]:
    owners: tuple[str, ...] = ROOTS
    found: tuple[Fact, ...] = ()
    for key in path.split("."):
        found = tuple(dict.fromkeys(classes()[c][key] for c in owners if key in classes()[c]))
        owners = section_classes(found)
    return found


def takes_anything(path: str) -> bool:
    """Whether an option above ``path`` is a dictionary without a fixed set of names."""
    keys = path.split(".")
    above = (facts(".".join(keys[:n])) for n in range(1, len(keys)))
    return any("dict" in fact.type for found in above for fact in found)


def names_in(section: str) -> list[str]:
    """AReaL's options in a section, or at the top for an empty name; empty if it has no such section."""
    owners = section_classes((*facts(section), *_facts(MOVED.get(section, "")))) if section else ROOTS
    return list(dict.fromkeys(name for owner in owners for name in classes()[owner]))


def section_classes(found: tuple[Fact, ...]) -> tuple[str, ...]:
    """The classes of the sections that options hold; a list of sections counts as a value."""
    named = (word for fact in found if "[" not in fact.type for word in _NAME.findall(fact.type))
    return tuple(dict.fromkeys(word for word in named if word in classes()))


def unknown_below(path: str, node: RawNode) -> Iterator[tuple[str, RawNode]]:
    """The options in a section of AReaL that it does not have."""
    if not isinstance(node, RawMapping) or not section_classes(facts(path)):
        return
    for key, child in node.entries.items():
        below = f"{path}.{key}"
        if not facts(below):
            yield below, child
        else:
            yield from unknown_below(below, child)


def same_value(node: RawNode, text: str) -> bool:
    """Whether a file's value equals that of ``text``: ``0`` is ``0.0``, and ``True`` is ``true``."""
    return _same(untyped(RawScalar(text)), _written(node))


def same_values(one: RawNode, other: RawNode) -> bool:
    """Whether two values of a file are equal for AReaL, whatever their quotes."""
    return _same(_written(one), _written(other))


def _written(node: RawNode) -> Any:
    """A value without regard to its quotes, which AReaL's types ignore too."""
    if isinstance(node, RawScalar):
        return untyped(RawScalar(node.text))
    if isinstance(node, RawList):
        return [_written(item) for item in node.items]
    return {key: _written(child) for key, child in node.entries.items()}


def _value(text: str) -> Any:
    if text in ("dict", "list"):
        return {} if text == "dict" else []
    if number := re.fullmatch(r"int\((.*)\)", text):
        return int(float(number[1]))
    try:
        return ast.literal_eval(text.removeprefix("lambda: "))
    except (ValueError, SyntaxError):
        return _NO_VALUE


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other or (one == "" and other is None))
