"""Generates the reference page of all options from their dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.sections import PluginSection
from archon_core.config.typed import field_types, section_of

HEADER = """# Options

This page lists every option of a configuration file. Write an option in YAML under its section, or as an override on
the command line: `archon train config.yaml actor.optimizer.lr=1e-5`. Archon parses numbers and booleans by the option's
type and takes texts literally; `${actor.path}` inserts the value of another option. `python tooling/docs.py` generates
the page from the dataclasses that define the options.
"""


@dataclass(frozen=True)
class OptionEntry:
    """One option of a section."""

    name: str
    type: str
    default: str
    text: str


@dataclass
class SectionEntry:
    """A dataclass and the paths of its sections."""

    schema: type
    paths: list[str] = field(default_factory=list)


def render_reference(root: type, sections: Sequence[PluginSection] = ()) -> str:
    """The page, in Markdown.

    Args:
        root: dataclass of the top level.
        sections: plugins' sections, which follow the root's.

    Raises:
        ValueError: an option is not documented under ``Attributes`` in its dataclass's docstring.
    """
    parts = [HEADER]
    for entry in root_sections(root):
        parts.append(f"## {_title(entry.paths[0])}\n")
        others = [f"`{path}`" for path in entry.paths[1:]]
        parts.append(_paragraph(entry.schema, f"The same under {', '.join(others)}." if others else ""))
        parts.append(_table(entry.schema))
    for section, others, users in _by_schema(sections):
        parts.append(f"## {_title(section.path)} ({section.owner})\n")
        same = f" The same under {', '.join(f'`{path}`' for path in others)}." if others else ""
        parts.append(_paragraph(section.schema, f"Used with {', '.join(users)}.{same}"))
        parts.append(_table(section.schema))
        own = {option.name for option in options_of(section.schema)}
        for name, hint in field_types(section.schema).items():
            inner = section_of(hint)
            if inner is not None and name in own:
                parts.append(f"### {_title(f'{section.path}.{name}')} ({section.owner})\n")
                parts.append(_paragraph(inner, ""))
                parts.append(_table(inner))
    return "\n".join(parts).rstrip() + "\n"


def root_sections(root: type) -> list[SectionEntry]:
    """The dataclasses of ``root`` with the dotted paths of their sections, the top level first."""
    entries: dict[type, SectionEntry] = {}

    def visit(schema: type, path: str) -> None:
        entries.setdefault(schema, SectionEntry(schema)).paths.append(path)
        for name, hint in field_types(schema).items():
            inner = section_of(hint)
            if inner is not None:
                visit(inner, f"{path}.{name}".lstrip("."))

    visit(root, "")
    return list(entries.values())


def options_of(schema: type) -> list[OptionEntry]:
    """The options of a dataclass with their documentation, without inherited ones."""
    texts = attribute_texts(schema)
    inherited = {
        f.name for base in schema.__bases__ if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)
    }
    own = [f for f in dataclasses.fields(schema) if f.name not in inherited]
    undocumented = [f.name for f in own if f.name not in texts]
    if undocumented:
        raise ValueError(f"{schema.__name__}: found no entry for {', '.join(undocumented)}; document each option")
    hints = field_types(schema)
    return [OptionEntry(f.name, _type(hints[f.name]), _default(f), texts[f.name]) for f in own]


def attribute_texts(schema: type) -> dict[str, str]:
    """Name -> text of the entries under ``Attributes`` in a docstring; inherited options are those of the base."""
    texts: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        docstring = inspect.cleandoc(vars(cls).get("__doc__") or "")
        _, found, body = docstring.partition("Attributes:\n")
        if not found:
            continue
        for match in re.finditer(r"^    (\w+): (.*(?:\n {5,}.*)*)", body, re.MULTILINE):
            texts[match[1]] = " ".join(match[2].split())
    return texts


def _by_schema(sections: Sequence[PluginSection]) -> Iterator[tuple[PluginSection, list[str], list[str]]]:
    """Each schema's first section, its other paths, and the specs that use it."""
    grouped: dict[type, list[PluginSection]] = {}
    for section in sections:
        grouped.setdefault(section.schema, []).append(section)
    for group in sorted(grouped.values(), key=lambda group: (group[0].owner, group[0].path, group[0].schema.__name__)):
        group.sort(key=lambda section: (section.owner, section.path))
        paths = dict.fromkeys(section.path for section in group)
        users = dict.fromkeys(f"{section.spec.kind.replace('_', ' ')} `{section.spec.name}`" for section in group)
        yield group[0], [*paths][1:], [*users]


def _title(path: str) -> str:
    return f"`{path}`" if path else "Top level"


def _paragraph(schema: type, more: str) -> str:
    summary = inspect.cleandoc(schema.__doc__ or "").partition("\n\nAttributes:")[0]
    text = " ".join(re.sub(r"``", "`", summary).split())
    return f"{text} {more}".strip() + "\n"


def _table(schema: type) -> str:
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for option in options_of(schema):
        cells = (f"`{option.name}`", option.type, f"`{option.default}`" if option.default else "", option.text)
        rows.append("| " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(annotation: Any) -> str:
    text = inspect.formatannotation(annotation) if not isinstance(annotation, type) else annotation.__name__
    section = section_of(annotation)
    if section is not None:
        return "section or null" if "None" in text else "section"
    words = {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "None": "null", "Any": "any"}
    text = re.sub(r"typing\.", "", text).replace("NoneType", "None")
    return re.sub(r"\b(str|int|float|bool|None|Any)\b", lambda match: words[match[1]], text).replace(" | ", " or ")


def _default(option: dataclasses.Field[Any]) -> str:
    value = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
    if dataclasses.is_dataclass(value):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r}" if value == "" else str(value)
