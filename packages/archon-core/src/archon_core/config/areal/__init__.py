"""AReaL's YAML files run as they are: a translation from raw tree to raw tree, driven by the tables in ``keys``.

``names`` replaces option names, ``meaning`` what an option means or leaves out, ``ignored`` judges what Archon
accepts without effect. What a plugin calls its own is left alone.
"""

from archon_core.config.areal.ignored import Verdict, judge, names_below
from archon_core.config.areal.meaning import Translation, fill_in, is_areal, translate, translate_deprecated
from archon_core.config.areal.names import new_name, rename

__all__ = [
    "Translation",
    "Verdict",
    "fill_in",
    "is_areal",
    "judge",
    "names_below",
    "new_name",
    "rename",
    "translate",
    "translate_deprecated",
]
