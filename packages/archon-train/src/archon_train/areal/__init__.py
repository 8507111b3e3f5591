"""AReaL's dialect: translates AReaL's YAML files, raw tree to raw tree, by the tables in ``keys`` and ``rules``.

``facts`` knows AReaL's options, ``composition`` reads the files that a file builds on, ``names`` replaces option names,
``meaning``, ``megatron``, ``removed_names`` and ``weight_updates`` translate values, and ``ignored`` and
``server_sections`` judge options that Archon does not have. Options that a plugin declares are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.config.dialect import Dialect, Translation, Verdict
from archon_core.config.raw import RawMapping, RawNode
from archon_train.areal.composition import compose
from archon_train.areal.ignored import judge, names_below
from archon_train.areal.meaning import fill_in, is_areal, translate, translate_deprecated
from archon_train.areal.names import rename

__all__ = ["DIALECT", "ArealDialect"]


class ArealDialect(Dialect):
    """AReaL's option names, in files and in overrides."""

    def recognises(self, tree: RawMapping) -> bool:
        return is_areal(tree)

    def compose(self, tree: RawMapping, folder: Path) -> RawMapping:
        return compose(tree, folder) if is_areal(tree) else tree

    def rename(self, tree: RawMapping, *, keep: frozenset[str]) -> RawMapping:
        return rename(tree, keep=keep)

    def own_roots(self) -> frozenset[str]:
        return frozenset({"model"})

    def translate(self, tree: RawMapping, *, recognised: bool) -> Translation:
        return translate(tree) if recognised else translate_deprecated(tree)

    def fill_in(self, tree: RawMapping, schema: type) -> Translation:
        return fill_in(tree, schema)

    def judge(self, path: str, node: RawNode, tree: RawMapping, *, recognised: bool) -> Verdict:
        return judge(path, node, tree, recognised=recognised)

    def names_below(self, section: str) -> Sequence[str]:
        return names_below(section)


DIALECT = ArealDialect()
