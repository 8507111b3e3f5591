"""A drawing of docs/weights.md: where the bytes of a bucket are with each transport, and who copies them."""

from __future__ import annotations

from generated.architecture import INK, LAYERS, LINE, PAD, SOFT, box, picture, text

COLUMNS = ("trainer's ranks", "two buckets", "server")
PATHS = (
    ("shm", "slots in shared memory", "maps the slots, copies", ""),
    ("ipc", "buffers on the GPU", "opens the buffers, copies", ""),
    ("distributed, gloo", "buffers of rank 0", "receives, copies", "a connection per server"),
    ("distributed, nccl", "buffers on rank 0's GPU", "receives, copies", "one broadcast"),
    ("disk", "buffers of rank 0", "reads the file", "a file per bucket"),
)
LEFT, WIDE, GAP, TALL, STEP, TOP = 150, 178, 166, 38, 56, 44


def draw_weight_paths() -> str:
    """One row per transport: shards, memory of the bucket, spare copy of a server."""
    shapes = [text(_x(column), TOP - 14, name, 13, SOFT) for column, name in enumerate(COLUMNS)]
    for row, (name, memory, reads, way) in enumerate(PATHS):
        y = TOP + row * STEP
        shapes.append(text(PAD, y + TALL / 2 + 5, name, 13, INK))
        shapes.append(box(_x(0), y, WIDE, TALL, "shards", LAYERS[0]))
        shapes.append(box(_x(1), y, WIDE, TALL, memory, LAYERS[2]))
        shapes.append(box(_x(2), y, WIDE + 20, TALL, reads, LAYERS[1]))
        shapes += _arrow(0, y, "one copy, with cast")
        shapes += _arrow(1, y, way)
    width, height = int(_x(2)) + WIDE + 20 + PAD, TOP + len(PATHS) * STEP + PAD - (STEP - TALL)
    return picture("Where the bytes of a bucket are", width, height, shapes)


def _x(column: int) -> float:
    return LEFT + column * (WIDE + GAP)


def _arrow(column: int, y: float, label: str) -> list[str]:
    start, end, middle = _x(column) + WIDE + 4, _x(column + 1) - 6, y + TALL / 2
    return [
        f"<path d='M{start:.0f} {middle:.0f} H{end:.0f} m-7 -4 l7 4 l-7 4' stroke='{LINE}' fill='none'/>",
        text(start + 6, middle - 6, label, 12, SOFT),
    ]
