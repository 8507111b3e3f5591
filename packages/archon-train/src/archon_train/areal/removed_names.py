"""Options that AReaL's newest release removed, in the form that replaced them.

``behave_imp_weight_cap`` and ``behave_imp_weight_mode`` became ``rejection_sampling``. They are translated where the
schema has the new option and not the old ones.
"""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawScalar, follow, merge, nested, prune
from archon_core.config.typed import knows
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError

CAP = "actor.behave_imp_weight_cap"
MODE = "actor.behave_imp_weight_mode"
NEW = "actor.rejection_sampling"
DEFAULT_CAP, DEFAULT_MODE = "5.0", "token_mask"
MODES = {
    "token_mask": ("token", "mask"),
    "token_truncate": ("token", "clamp"),
    "sequence_mask": ("sequence", "mask"),
    "sequence_truncate": ("sequence", "clamp"),
}
"""AReaL's former modes -> level and action of ``rejection_sampling``."""


def translate_removed(tree: RawMapping, schema: type, decisions: list[Decision]) -> RawMapping:
    """Replace removed options.

    Raises:
        ConfigError: the mode is unknown, or the file has the new option too.
    """
    written = [option for option in (CAP, MODE) if tree.get(option) is not None]
    if not written or knows(schema, CAP) or not knows(schema, NEW):
        return tree
    _, cap = follow(tree, CAP)
    _, mode = follow(tree, MODE)
    source = next(node.source for option in written if (node := tree.get(option)) is not None)
    new = tree.get(NEW)
    if new is not None and not (isinstance(new, RawScalar) and new.is_null):
        raise ConfigError(f"{source}: found {written[0]}, which became {NEW}, and {NEW} as well; remove one")
    limit = cap.text if isinstance(cap, RawScalar) else DEFAULT_CAP
    text = mode.text if isinstance(mode, RawScalar) else DEFAULT_MODE
    tree = prune(tree, lambda path, _: path in written)
    if text == "disabled" or (isinstance(cap, RawScalar) and cap.is_null):
        decisions.append(Decision(", ".join(written), f"{limit}, {text}", f"{NEW}=null", f"{NEW} replaced it"))
        return tree
    if text not in MODES:
        raise ConfigError(f"{source}: {MODE}: found {text!r}; allowed are disabled, {', '.join(MODES)}")
    level, action = MODES[text]
    values = {"level": level, "action": action, "metric": "ratio", "upper": limit}
    for name, value in values.items():
        tree = merge(tree, nested(f"{NEW}.{name}", RawScalar(value, source=source)))
    shown = "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"
    asked = ", ".join(filter(None, [limit if CAP in written else "", text if MODE in written else ""]))
    decisions.append(Decision(", ".join(written), asked, f"{NEW}={shown}", f"{NEW} replaced it"))
    return tree
