"""The drawing of docs/weights.md: what trainer, transport and server do while one version is published."""

from __future__ import annotations

from generated.architecture import INK, LAYERS, PAD, SOFT, box, picture, text

LANES = ("trainer's ranks", "on its way", "server, spare copy", "server, in use")
PHASES = (("prepare", 0), ("verify", 5.1), ("commit", 6), ("canary", 6.75))
BUCKETS = 4
STEP, TALL, LEFT, TOP = 104, 38, 150, 40


def draw_publication() -> str:
    """Lanes over time: buckets overlap, and the switch alone touches the weights in use."""
    shapes = []
    for name, start in PHASES:
        x = _x(start)
        shapes.append(text(x + 6, TOP - 12, name, 13, INK))
        shapes.append(
            f"<path d='M{x:.0f} {TOP - 26} V{TOP + len(LANES) * (TALL + 18)}' stroke='{SOFT}' stroke-dasharray='3 4' "
            "stroke-opacity='0.7'/>"
        )
    for lane, name in enumerate(LANES):
        shapes.append(text(PAD, _y(lane) + TALL / 2 + 5, name, 13, SOFT))
    for bucket in range(BUCKETS):
        shapes.append(_bar(0, bucket, bucket + 1, f"gather {bucket}", LAYERS[0]))
        shapes.append(_bar(1, bucket + 1, bucket + 1.75, f"send {bucket}", LAYERS[2]))
        shapes.append(_bar(2, bucket + 1.3, bucket + 2.1, f"store {bucket}", LAYERS[1]))
    shapes.append(_bar(2, 5.12, 6, "checksums", LAYERS[1]))
    shapes.append(_bar(3, 0, 6, "generates with version 6", LAYERS[4]))
    shapes.append(_bar(3, 6, 6.75, "switch", LAYERS[2]))
    shapes.append(_bar(3, 6.75, 7.9, "version 7", LAYERS[4]))
    shapes.append(text(_x(6) - 6, _y(len(LANES)) + 6, "the only pause", 12, SOFT))
    width, height = int(_x(7.9)) + PAD, int(_y(len(LANES))) + PAD
    return picture("The publication of one version", width, height, shapes)


def _x(time: float) -> float:
    return LEFT + time * STEP


def _y(lane: int) -> float:
    return TOP + 6 + lane * (TALL + 18)


def _bar(lane: int, start: float, end: float, label: str, fill: str) -> str:
    return box(_x(start) + 2, _y(lane), (end - start) * STEP - 4, TALL, label, fill)
