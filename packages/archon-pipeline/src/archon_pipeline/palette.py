"""Colours and words for the kinds of actions: the same in the terminal, in pictures and in legends."""

from __future__ import annotations

from archon_core.contracts.pipeline import ActionKind

MEANING = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward, whole",
    ActionKind.BACKWARD_INPUT: "gradient of input",
    ActionKind.BACKWARD_WEIGHT: "gradient of weights",
}
"""In the order of legends."""

_Rgb = tuple[int, int, int]

# Told apart by those who do not see red or green well; lightness differs too, for print.
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
    """``#rrggbb`` of an action on stage ``place`` of its rank's ``n_places``: dark on the first, light on the last."""
    share = place / (n_places - 1) if n_places > 1 else 0.0
    mixed = (round(a + (b - a) * share) for a, b in zip(_FIRST[kind], _LATER[kind], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(place: int, n_places: int) -> str:
    """``#rrggbb`` of text on it."""
    return "#ffffff" if n_places == 1 or place / (n_places - 1) < 0.5 else "#101828"
