"""Dotted overrides of the command line: ``actor.archon.enable_compile=false``.

A value is taken literally, so that no second layer of quotes is needed for YAML. Only a value that starts a list, a
section or a quotation is parsed as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType

from archon_core.config.raw import RawList, RawMapping, RawNode, RawScalar, merge, nested, walk, whole_text
from archon_core.config.yaml_file import parse_yaml_node
from archon_core.errors import ConfigError

FORM = "write name.of.option=value"


def parse_overrides(overrides: Iterable[str]) -> RawMapping:
    """All overrides as one tree; the last one wins.

    Raises:
        ConfigError: an override is not of the form ``name=value``, or its value is an unclosed list or section.
    """
    tree = RawMapping(MappingProxyType({}))
    for override in overrides:
        tree = merge(tree, parse_override(override))
    return tree


def parse_override(override: str) -> RawMapping:
    """One override as a tree. A leading ``+``, which other tools require for new keys, is ignored."""
    source = f"override {override!r}"
    if whole_text(override) is None:
        raise ConfigError(f"{source}: found bytes that are not text in the encoding of this terminal; write text")
    if override.startswith("~"):
        raise ConfigError(f"{source}: options cannot be deleted; set the option to null, or remove it from the file")
    if override.startswith("-"):
        raise ConfigError(f"{source}: found a flag where an override is expected; {FORM}")
    name, equals, value = re.sub(r"^\+{1,2}", "", override).partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f"{source}: found no '='; {FORM}")
    if re.search(r"\[|\]|(^|\.)\d+($|\.)", name):
        raise ConfigError(f"{source}: lists are replaced as a whole; write name=[first,second]")
    for key in name.split("."):
        if not re.fullmatch(r"[A-Za-z_][\w-]*", key):
            what = f"the option name {key!r}" if key else "an empty option name"
            raise ConfigError(f"{source}: found {what}; {FORM}")
    return nested(name, _parse_value(value.strip(), source))


def _parse_value(text: str, source: str) -> RawNode:
    if text[:1] in ("[", "{", "'", '"'):
        node = parse_yaml_node(text, source)
        if node is None:  # unreachable for these first characters; kept for the type checker
            raise ConfigError(f"{source}: found no value; {FORM}")
        if isinstance(node, RawMapping):
            _refuse_glued_keys(node, source)
        return _relabelled(node, source)
    # 'name=' is the empty text, not null: that is what users of other tools write it for.
    return RawScalar(text, plain=text != "", source=source)


def _refuse_glued_keys(node: RawMapping, source: str) -> None:
    for path, child in walk(node):
        key = path.rpartition(".")[2]
        if ":" in key and isinstance(child, RawScalar) and child.is_null:
            raise ConfigError(f"{source}: found {key!r} without a space after the colon; write {{name: value}}")


def _relabelled(node: RawNode, source: str) -> RawNode:
    """The node with the override as its source, instead of a line number."""
    if isinstance(node, RawScalar):
        return RawScalar(node.text, node.plain, source)
    if isinstance(node, RawList):
        return RawList(tuple(_relabelled(item, source) for item in node.items), source)
    return RawMapping({key: _relabelled(child, source) for key, child in node.entries.items()}, source)
