"""AReaL's dialect: translates AReaL's YAML files, raw tree to raw tree, by the tables in ``keys``.

``names`` replaces option names, ``meaning`` translates values and fills in AReaL's defaults, ``ignored`` judges options
that Archon accepts without effect. Options that a plugin declares are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.config.dialect import Dialect, Translation, Verdict
from archon_core.config.raw import RawMapping, RawNode
from archon_train.areal.ignored import judge, names_below
from archon_train.areal.meaning import fill_in, is_areal, translate, translate_deprecated
from archon_train.areal.names import rename

__all__ = ["DIALECT", "ArealDialect"]


class ArealDialect(Dialect):
    """AReaL's option names, in files and in overrides."""

    def recognises(self, tree: RawMapping) -> bool:
        return is_areal(tree)

    def rename(self, tree: RawMapping, *, keep: frozenset[str]) -> RawMapping:
        return rename(tree, keep=keep)

    def own_roots(self) -> frozenset[str]:
        return frozenset({"model"})

    def translate(self, tree: RawMapping, *, recognised: bool) -> Translation:
        return translate(tree) if recognised else translate_deprecated(tree)

    def fill_in(self, tree: RawMapping, schema: type) -> Translation:
        return fill_in(tree, schema)

    def judge(self, path: str, node: RawNode, tree: RawMapping) -> Verdict:
        return judge(path, node, tree)

    def names_below(self, section: str) -> Sequence[str]:
        return names_below(section)


DIALECT = ArealDialect()
