"""AReaL's deprecated ``allocation_mode``, which describes all engines in one string.

Archon ignores it and records a decision with the replacement. It parses all historical forms::

    sglang:d4t2+archon:d4p2t2                     inference and training on separate ranks
    sglang.d4p1t1+d4p1t1, sglang.d4p1m1+d2p2m1    a dot for the colon, no training backend, m for t
    sglang:d4|fsdp:d4                             both on the same ranks
    sglang[rollout]:d4+archon[actor]:d4           named engines
    sglang:d4+eval, archon:d8                     inference alone, training alone
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from archon_core.errors import LayoutError
from archon_core.layout.backends import BUILTIN_BACKENDS, Backend
from archon_core.layout.grammar import parse_layout
from archon_core.layout.layout import Layout
from archon_train.cluster import ENGINE_KINDS

if TYPE_CHECKING:
    from archon_core.contracts.decisions import Decision

DEFAULT_TRAIN_BACKEND = "archon"
"""For sizes without a backend. AReaL chooses fsdp or megatron by the sizes."""

_COMPONENT = re.compile(r"(?:(?P<backend>[A-Za-z][\w-]*)(?:\[(?P<role>\w+)\])?[:.])?(?P<sizes>\(.*\)|(?:[a-z][0-9]+)+)")
_SEPARATOR = re.compile(r"\+|\|(?![^(]*\))")  # not the bar inside (attn:...|ffn:...)
_NO_TRAINING = ("eval", "cpu")


def allocation_mode_decision(allocation_mode: str, *, backends: Mapping[str, Backend] = BUILTIN_BACKENDS) -> Decision:
    """The decision to ignore ``allocation_mode``, with the equivalent ``backend`` options.

    Never raises: a string that cannot be parsed is ignored, too, and the reason contains the error.
    """
    # Imported here because reading a configuration imports layouts.
    from archon_core.contracts.decisions import Decision

    reason = "allocation_mode is deprecated: each engine has its own backend option; "
    try:
        layouts = allocation_mode_layouts(allocation_mode, backends=backends)
    except LayoutError as error:
        cause = str(error).partition("\n")[0]
        reason += f"set rollout.backend and actor.backend (cannot parse it: {cause})"
    else:
        overrides = " ".join(shlex.quote(f"{role}.backend={layout}") for role, layout in layouts.items())
        reason += f"write {overrides}"
        if "|" in _SEPARATOR.findall(allocation_mode):
            reason += (
                "; '|' needs no replacement: engines of one size share ranks by default, and so does rollout local"
            )
    return Decision(option="allocation_mode", requested=allocation_mode, effective="ignored", reason=reason)


def allocation_mode_layouts(
    allocation_mode: str, *, backends: Mapping[str, Backend] = BUILTIN_BACKENDS
) -> dict[str, Layout]:
    """The engines of an ``allocation_mode``, by role.

    Raises:
        LayoutError: it has none of the forms above, or a layout is malformed.
    """
    layouts: dict[str, Layout] = {}
    for component in map(str.strip, _SEPARATOR.split(allocation_mode)):
        if component in _NO_TRAINING:
            continue
        match = _COMPONENT.fullmatch(component)
        if match is None:
            raise LayoutError(
                f"allocation_mode: found {component!r}\n"
                "allowed: <backend>:<sizes>, joined by '+' or '|'\n"
                "fix: set the backend of each engine instead"
            )
        text = f"{match['backend'] or DEFAULT_TRAIN_BACKEND}:{re.sub('m(?=[0-9])', 't', match['sizes'])}"
        layout = parse_layout(text, backends=backends, option="allocation_mode")
        role = match["role"] or ("rollout" if layout.kind == "inference" else "actor")
        if role not in ENGINE_KINDS or role in layouts:
            what = "a second engine for" if role in layouts else "the unknown engine"
            raise LayoutError(
                f"allocation_mode: found {what} {role!r} in {component!r}\n"
                f"allowed: each of {', '.join(ENGINE_KINDS)} at most once\n"
                "fix: set the backend of each engine instead"
            )
        layouts[role] = layout
    return layouts
