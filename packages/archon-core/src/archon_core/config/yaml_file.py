"""Parses YAML into a tree of texts, strictly: no duplicate names, no type inference, bounded aliases."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from archon_core.config.raw import NULLS, RawList, RawMapping, RawNode, RawScalar, whole_text
from archon_core.errors import ConfigError

MAX_NODES = 20_000
MAX_DEPTH = 64
_SCALAR_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))


def read_yaml(path: Path) -> RawMapping:
    """Read a configuration file.

    Raises:
        ConfigError: the file is unreadable, or is not a single YAML mapping in UTF-8 without duplicate keys.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a YAML file") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> RawMapping:
    """Parse the text of a configuration file; ``name`` precedes line numbers in messages.

    Raises:
        ConfigError: the text is not a single YAML mapping without duplicate keys.
    """
    root = parse_yaml_node(text, name)
    if root is None or (isinstance(root, RawScalar) and root.is_null):
        raise ConfigError(f"{name}: the file is empty; write at least one option, such as 'actor: {{path: ...}}'")
    if not isinstance(root, RawMapping):
        found = "a list" if isinstance(root, RawList) else f"the text {root.text!r}"
        raise ConfigError(f"{name}: found {found} at the top; allowed are sections and options, written 'name: value'")
    return root


def parse_yaml_node(text: str, name: str) -> RawNode | None:
    """Parse a YAML document of any type; ``None`` if it is empty."""
    try:
        return _Builder(text, name).build()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        if "'\\t'" in (error.problem or ""):
            raise ConfigError(f"{where}: found a tab; indent with spaces") from error
        context = f" ({error.context})" if error.context else ""
        raise ConfigError(f"{where}: invalid YAML{context}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: invalid YAML: {error}") from error


class _Builder:
    """Builds the tree from YAML events, which still contain texts, quotes and positions."""

    def __init__(self, text: str, name: str) -> None:
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._name = name
        self._anchors: dict[str, RawNode] = {}
        self._sizes: dict[str, int] = {}
        self._count = 0

    def build(self) -> RawNode | None:
        root: RawNode | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self._error(event, "a second document starts with '---'; one file holds one configuration")
                root = self._node(next(self._events), depth=0)
        return root

    def _node(self, event: Any, depth: int) -> RawNode:
        if depth > MAX_DEPTH:
            raise self._error(event, f"sections are nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._count
        self._grow(event, 1)
        source = self._at(event)
        node: RawNode
        if isinstance(event, yaml.ScalarEvent):
            node = RawScalar(self._text(event), plain=self._is_plain(event), source=source)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._refuse_tag(event)
            items = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(item, depth + 1))
            node = RawList(tuple(items), source)
        else:
            self._refuse_tag(event)
            node = self._mapping(source, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
            self._sizes[event.anchor] = self._count - before
        return node

    def _mapping(self, source: str, depth: int) -> RawMapping:
        entries: dict[str, RawNode] = {}
        inherited: dict[str, RawNode] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "found a name that is not plain text; write 'name: value'")
            key, line = self._text(event), event.start_mark.line + 1
            if event.style is None and key == "<<":
                inherited = self._merged(event, self._node(next(self._events), depth + 1)) | inherited
                continue
            if event.style is None and key in NULLS:
                raise self._error(event, f"found the name {key!r}; write 'name: value', with quotes if it is meant")
            if key in entries:
                raise self._error(event, f"{key!r} appears twice in this section, first on line {lines[key]}; keep one")
            lines[key] = line
            entries[key] = _placed(self._node(next(self._events), depth + 1), self._at(event))
        return RawMapping(MappingProxyType(inherited | entries), source)

    def _merged(self, event: Any, value: RawNode) -> dict[str, RawNode]:
        sections = value.items if isinstance(value, RawList) else (value,)
        entries: dict[str, RawNode] = {}
        for section in sections:
            if not isinstance(section, RawMapping):
                raise self._error(event, "'<<' takes a section or a list of sections, such as '<<: *defaults'")
            entries = dict(section.entries) | entries
        return entries

    def _alias(self, event: Any) -> RawNode:
        if event.anchor not in self._anchors:
            raise self._error(
                event, f"'*{event.anchor}' refers to no complete value above it; define '&{event.anchor}'"
            )
        # Aliases count in full, so that a few lines cannot expand to billions of nodes.
        self._grow(event, self._sizes[event.anchor])
        return self._anchors[event.anchor]

    def _grow(self, event: Any, nodes: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            raise self._error(event, f"the file expands to more than {MAX_NODES} values; write fewer or use no aliases")

    def _is_plain(self, event: Any) -> bool:
        if event.tag is not None and event.tag not in _SCALAR_TAGS and event.tag != "!":
            self._refuse_tag(event)
        return event.style is None and event.tag not in ("!", _SCALAR_TAGS[0])

    def _text(self, event: Any) -> str:
        text = whole_text(event.value)
        if text is None:
            raise self._error(event, f"found half a surrogate pair in {event.value!r}; write the whole character")
        return text

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._error(event, f"the tag {event.tag!r} is not supported; write the plain value")

    def _at(self, event: Any) -> str:
        return f"{self._name}:{event.start_mark.line + 1}"

    def _error(self, event: Any, message: str) -> ConfigError:
        return ConfigError(f"{self._at(event)}: {message}")


def _placed(node: RawNode, source: str) -> RawNode:
    if isinstance(node, RawScalar):
        return RawScalar(node.text, node.plain, source)
    if isinstance(node, RawList):
        return RawList(node.items, source)
    return RawMapping(node.entries, source)
