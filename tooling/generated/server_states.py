"""The drawing of docs/elastic.md: the states of a server in a pool, and what moves it from one to another."""

from __future__ import annotations

from generated.architecture import INK, LAYERS, PAD, SOFT, box, picture, text

WIDE, TALL, STEP, TOP = 112, 44, 216, 36
STATES = (("joining", LAYERS[0]), ("warming", LAYERS[2]), ("active", LAYERS[1]), ("suspect", LAYERS[4]))
REMARKS = ("announced", "gets the weights", "gets requests", "keeps its requests")


def draw_server_states() -> str:
    """Four states in a row, and ``out`` below them."""
    shapes = [box(_x(place), TOP, WIDE, TALL, name, fill) for place, (name, fill) in enumerate(STATES)]
    shapes += [text(_x(place), TOP - 10, remark, 12, SOFT) for place, remark in enumerate(REMARKS)]
    below = TOP + 128
    shapes.append(box(_x(2), below, WIDE, TALL, "out", "#e5989b"))
    shapes.append(text(_x(2) + 2, below + TALL + 16, "no requests, no weights", 12, SOFT))
    middle = TOP + TALL / 2
    shapes.append(_arrow(f"M{_x(0) + WIDE} {middle} H{_x(1) - 2}", "publication, disk", _x(0) + WIDE + 4, middle - 6))
    shapes.append(_arrow(f"M{_x(1) + WIDE} {middle} H{_x(2) - 2}", "canary passed", _x(1) + WIDE + 8, middle - 6))
    shapes.append(_arrow(f"M{_x(2) + WIDE} {TOP + 12} H{_x(3) - 2}", "a probe failed", _x(2) + WIDE + 10, TOP + 6))
    shapes.append(_arrow(f"M{_x(3)} {TOP + 32} H{_x(2) + WIDE + 2}", "a probe passed", _x(2) + WIDE + 8, TOP + 47))
    x = _x(1) + WIDE / 2
    shapes.append(
        _arrow(f"M{x} {TOP + TALL} V{below + 12} H{_x(2) - 2}", "publication failed", x - 122, TOP + TALL + 40)
    )
    x = _x(2) + WIDE / 2
    shapes.append(_arrow(f"M{x} {TOP + TALL} V{below - 2}", "", 0, 0))
    shapes += [
        text(x + 8, TOP + TALL + 30, "publication failed,", 12, SOFT),
        text(x + 8, TOP + TALL + 46, "withdrew, restarted", 12, SOFT),
    ]
    x = _x(3) + WIDE / 2
    shapes.append(
        _arrow(f"M{x} {TOP + TALL} V{below + 22} H{_x(2) + WIDE + 2}", "too many failed", x - 106, below + 16)
    )
    x = _x(0) + WIDE / 2
    shapes.append(
        _arrow(
            f"M{_x(2)} {below + 34} H{x} V{TOP + TALL + 2}", "after the cooldown, if still announced", x + 8, below + 50
        )
    )
    return picture("The states of a server", int(_x(3) + WIDE + 4 * PAD), below + TALL + 2 * PAD, shapes)


def _x(place: int) -> float:
    return PAD + place * STEP


def _arrow(path: str, label: str, x: float, y: float) -> str:
    """A line with a head at its end."""
    last = path.split()[-1]
    head = {"H": "h0 m-6 -5 l6 5 l-6 5", "V": "h0 m-5 -6 l5 6 l5 -6"}[last[0]]
    if _points_back(path):
        head = {"H": "h0 m6 -5 l-6 5 l6 5", "V": "h0 m-5 6 l5 -6 l5 6"}[last[0]]
    return f"<path d='{path} {head}' fill='none' stroke='{INK}'/>" + (text(x, y, label, 12, SOFT) if label else "")


def _points_back(path: str) -> bool:
    """Whether the last stroke goes left or up."""
    numbers = path.removeprefix("M").split()
    x, y = float(numbers[0]), float(numbers[1])
    before = (x, y)
    for stroke in numbers[2:]:
        before = (x, y)
        if stroke[0] == "H":
            x = float(stroke[1:])
        else:
            y = float(stroke[1:])
    return x < before[0] or y < before[1]
