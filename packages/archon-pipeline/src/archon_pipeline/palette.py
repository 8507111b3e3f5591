"""Colours and names of the kinds of actions, shared by the terminal, SVG pictures and legends."""

from __future__ import annotations

from archon_core.contracts.pipeline import ActionKind

MEANING = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward, whole",
    ActionKind.BACKWARD_INPUT: "gradient of input",
    ActionKind.BACKWARD_WEIGHT: "gradient of weights",
}
"""Kind -> name, in the order of legends."""

_Rgb = tuple[int, int, int]

# Distinguishable with red-green colour blindness; lightness differs too, for print.
_FIRST: dict[ActionKind, _Rgb] = {
    ActionKind.FORWARD: (49, 104, 172),
    ActionKind.BACKWARD: (12, 122, 104),
    ActionKind.BACKWARD_INPUT: (190, 94, 0),
    ActionKind.BACKWARD_WEIGHT: (108, 74, 150),
}
_LATER: dict[ActionKind, _Rgb] = {
    ActionKind.FORWARD: (176, 208, 245),
    ActionKind.BACKWARD: (158, 222, 205),
    ActionKind.BACKWARD_INPUT: (252, 205, 145),
    ActionKind.BACKWARD_WEIGHT: (216, 200, 236),
}


def colour(kind: ActionKind, place: int, n_places: int) -> str:
    """``#rrggbb`` of an action on stage ``place`` of a rank's ``n_places``: dark for the first, light for the last."""
    share = place / (n_places - 1) if n_places > 1 else 0.0
    mixed = (round(a + (b - a) * share) for a, b in zip(_FIRST[kind], _LATER[kind], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def text_colour(place: int, n_places: int) -> str:
    """``#rrggbb`` of readable text on ``colour``."""
    return "#ffffff" if n_places == 1 or place / (n_places - 1) < 0.5 else "#101828"
