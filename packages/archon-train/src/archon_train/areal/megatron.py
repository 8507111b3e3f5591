"""Runs AReaL's ``megatron:`` backends in the Archon engine: the same layout, and the nearest option for each of theirs.

The layout letters mean the same in both. Recomputation and schedules change memory and speed, never the numbers, so the
nearest setting is enough. The table ``rules.IGNORED`` lists what the other options under ``megatron`` become.
"""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawNode, RawScalar, follow, merge, nested, prune, shown, walk
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.errors import LayoutError
from archon_core.layout import parse_layout
from archon_train.areal.facts import facts, same_value
from archon_train.areal.keys import MEGATRON_TRANSLATED
from archon_train.areal.raw_options import text_of, with_text

PREFIX = "megatron:"
REASON = "the Archon engine has Megatron's layouts"

_COPIED = ("use_deterministic_algorithms", "main_params_dtype", "moe_router_dtype")
_NONZERO = ("moe_router_bias_update_rate", "moe_z_loss_coeff")


def translate_megatron(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """Replace ``megatron:`` backends and translate the options under ``megatron``."""
    backends = {role: _backend(tree, role) for role in ROLES}
    for role in ROLES:
        if not isinstance(tree.get(role), RawMapping):
            continue
        if backends[role].startswith(PREFIX):
            tree = _options(tree, role, backends[role], decisions)
        elif isinstance(tree.get(f"{role}.megatron"), RawMapping):
            tree = _unused(tree, role, backends[role], decisions)
    for role in ROLES:
        written = tree.get(f"{role}.backend")
        if isinstance(written, RawScalar) and written.text.startswith(PREFIX):
            archon = "archon:" + written.text.removeprefix(PREFIX)
            decisions.append(Decision(f"{role}.backend", written.text, archon, REASON))
            tree = with_text(tree, f"{role}.backend", archon, written.source)
    return tree


def _backend(tree: RawMapping, role: str) -> str:
    """The text of a role's backend; the actor's if it is empty."""
    return text_of(tree, f"{role}.backend") or text_of(tree, "actor.backend")


def _unused(tree: RawMapping, role: str, backend: str, decisions: list[Decision]) -> RawMapping:
    """Take out the options of an engine that the file does not use; unknown ones stay and are reported."""
    known = [path for path, node in walk(tree) if _is_option_below(path, node, f"{role}.megatron")]
    if known:
        reason = f"options of the engine megatron; {role}.backend is {backend or 'empty'}"
        values = (tree.get(path) for path in known)
        asked = dict.fromkeys(shown(node) for node in values if node is not None)
        decisions.append(Decision(", ".join(known), ", ".join(asked), "no effect", reason))
    return prune(tree, lambda path, _: path in known)


def _is_option_below(path: str, node: RawNode, section: str) -> bool:
    return path.startswith(f"{section}.") and not isinstance(node, RawMapping) and bool(facts(path))


def _options(tree: RawMapping, role: str, backend: str, decisions: list[Decision]) -> RawMapping:
    for name in _COPIED:
        tree = _copy(tree, role, name, decisions)
    for name in _NONZERO:
        node = tree.get(f"{role}.megatron.{name}")
        if node is not None and not same_value(node, "0") and not same_value(node, "null"):
            tree = _copy(tree, role, name, decisions)
    tree = _recomputation(tree, role, decisions)
    return _schedule(tree, role, backend, decisions)


def _copy(tree: RawMapping, role: str, name: str, decisions: list[Decision]) -> RawMapping:
    node = tree.get(f"{role}.megatron.{name}")
    target = f"{role}.{MEGATRON_TRANSLATED[name]}"
    if node is None or tree.get(target) is not None:
        return tree
    decisions.append(Decision(f"{role}.megatron.{name}", shown(node), f"{target}={shown(node)}", REASON))
    return merge(tree, nested(target, node))


def _recomputation(tree: RawMapping, role: str, decisions: list[Decision]) -> RawMapping:
    """``recompute_*`` as the nearest ``ac_mode``; AReaL recomputes whole layers unless a file says otherwise."""
    target = f"{role}.archon.ac_mode"
    if tree.get(target) is not None or not _is_on(tree, f"{role}.gradient_checkpointing"):
        return tree
    written = {
        path.rpartition(".")[2]: node
        for path, node in walk(tree)
        if path.startswith(f"{role}.megatron.recompute_") and not isinstance(node, RawMapping)
    }
    granularity = _text(tree, f"{role}.megatron.recompute_granularity", "full")
    mode = {"full": "full", "selective": "selective", "null": "none"}.get(granularity, "full")
    options = ", ".join(f"{role}.megatron.{name}" for name in written) or f"{role}.megatron.recompute_granularity"
    asked = ", ".join(shown(node) for node in written.values()) or "left out (full in AReaL)"
    reason = {
        "full": "every layer is recomputed",
        "selective": "what is cheap is recomputed, not the modules of recompute_modules",
        "none": "nothing is recomputed",
    }[mode]
    decisions.append(Decision(options, asked, f"{target}={mode}", f"{REASON}; {reason}"))
    return with_text(tree, target, mode)


def _schedule(tree: RawMapping, role: str, backend: str, decisions: list[Decision]) -> RawMapping:
    """Megatron interleaves stages if it has virtual stages, and runs 1F1B otherwise."""
    try:
        stages = parse_layout("archon:" + backend.removeprefix(PREFIX)).dims["p"]
    except LayoutError:
        return tree  # preflight reports the error
    if stages == 1:
        return tree
    tree = _balance(tree, role, decisions)
    option, target = f"{role}.megatron.virtual_pipeline_parallel_size", f"{role}.archon.pp_schedule"
    if tree.get(target) is not None:
        return tree
    node = tree.get(option)
    virtual = _text(tree, option, "1")
    schedule = "1F1B" if virtual in ("1", "null") else "Interleaved1F1B"
    asked = "left out (1 in AReaL)" if node is None else virtual
    reason = "1F1B has one stage per rank" if schedule == "1F1B" else "archon.pp_layers_per_stage sets their number"
    decisions.append(Decision(option, asked, f"{target}={schedule}", f"{REASON}; {reason}"))
    return with_text(tree, target, schedule)


def _balance(tree: RawMapping, role: str, decisions: list[Decision]) -> RawMapping:
    """Megatron gives every stage the same number of layers, and has no options for the outer stages."""
    names = [f"{role}.archon.pp_{which}_stage_less_layers" for which in ("first", "last")]
    missing = [name for name in names if tree.get(name) is None]
    if missing:
        reason = "Megatron gives every stage as many layers; Archon balances the stages by cost"
        decisions.append(Decision(", ".join(missing), "left out", "null", reason))
    for name in missing:
        tree = with_text(tree, name, "null")
    return tree


def _is_on(tree: RawMapping, option: str) -> bool:
    _, node = follow(tree, option)
    return node is not None and same_value(node, "true")


def _text(tree: RawMapping, option: str, default: str) -> str:
    _, node = follow(tree, option)
    if not isinstance(node, RawScalar):
        return default
    return "null" if node.is_null else node.text
