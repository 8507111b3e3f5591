"""Hydra's ``defaults`` list, which adds the options of other files to a file of AReaL."""

from __future__ import annotations

from pathlib import Path

from archon_core.config.raw import RawList, RawMapping, RawNode, RawScalar, merge, prune
from archon_core.config.yaml_file import read_yaml
from archon_core.errors import ConfigError

SELF = "_self_"
GLOBAL = "@_global_"
MAX_FILES = 32
ALLOWED = f"allowed are names of YAML files beside this one, in the form NAME or NAME{GLOBAL}, and {SELF}"


def compose(tree: RawMapping, folder: Path, depth: int = 0) -> RawMapping:
    """``tree`` merged with the files that its ``defaults`` list names, in the order of the list.

    Args:
        tree: a file's content.
        folder: the file's folder, to which the names are relative.
        depth: number of files that led to this one.

    Raises:
        ConfigError: an entry has another form, a file cannot be read, or ``_self_`` is not in the list exactly once.
    """
    names = tree.get("defaults")
    if names is None:
        return tree
    entries = names.items if isinstance(names, RawList) else ()
    texts = [entry.text if isinstance(entry, RawScalar) else "" for entry in entries]
    own = prune(tree, lambda path, _: path == "defaults")
    if texts.count(SELF) != 1:
        raise _refused(names, f"{SELF} {texts.count(SELF)} times", f"allowed is {SELF} once: it says which options win")
    if depth == MAX_FILES:
        raise _refused(names, f"a chain of {depth} files", "allowed is a chain that ends; correct the names")
    result = RawMapping({}, tree.source)
    for entry, text in zip(entries, texts, strict=True):
        result = merge(result, own if text == SELF else _read(entry, text, folder, depth))
    return result


def _read(entry: RawNode, text: str, folder: Path, depth: int) -> RawMapping:
    name, package = text.removesuffix(GLOBAL), text.endswith(GLOBAL)
    if not name or "@" in name or ":" in name or ("/" in name and not package):
        raise _refused(entry, repr(text) if text else "an entry that is not a name", ALLOWED)
    path = folder / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    try:
        return compose(read_yaml(path), path.parent, depth + 1)
    except ConfigError as error:
        raise ConfigError(f"{entry.source}: defaults: {error}") from error


def _refused(node: RawNode, found: str, allowed: str) -> ConfigError:
    return ConfigError(f"{node.source}: defaults: found {found}; {allowed}")
