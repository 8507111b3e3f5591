"""Drawings of docs/layouts.md: the ranks of a layout, as dense parameters and as experts see them."""

from __future__ import annotations

import math

from archon_core.layout import parse_layout
from archon_core.layout.grid import RankGrid

CELL, GAP, PAD = 46, 6, 16
INK, PAPER, LINE = "#24292f", "#ffffff", "#8c959f"
COLOURS = ("#8ecae6", "#ffb703", "#90be6d", "#f28482", "#cdb4db", "#f6bd60", "#84a59d", "#a2d2ff")
FONT = "font-family='system-ui, sans-serif'"


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    return {
        "layout-stages.svg": draw_stages("archon:p2d2t2"),
        "layout-views.svg": draw_views("archon:(attn:d2c2t2|ffn:e4)"),
    }


def draw_stages(text: str) -> str:
    """The ranks of a dense layout: a block per pipeline rank."""
    grid = parse_layout(text).parallel_dims(moe=False).dense_grid
    drawing = _Drawing(f"{text}: {grid.size} ranks")
    left = PAD
    for stage in range(grid.sizes[0]):
        ranks = [rank for rank in range(grid.size) if grid.coordinates(rank)["pp"] == stage]
        drawing.text(left, PAD + 36, f"pipeline rank {stage}", weight=600)
        left += _block(drawing, grid, ranks, left, rows=("dp_shard",), columns=("tp",), colour="dp_shard") + 50
    drawing.note("Same colour: one data rank, whose tensor ranks share every matrix. Rows: FSDP's shards.")
    return drawing.svg()


def draw_views(text: str) -> str:
    """The same ranks twice: who shares a dense parameter, and who shares an expert."""
    dims = parse_layout(text).parallel_dims(moe=True)
    drawing = _Drawing(f"{text}: {dims.world_size} ranks, twice")
    ranks = list(range(dims.world_size))
    left = PAD
    for title, grid, rows, columns in (
        ("dense parameters", dims.dense_grid, ("dp_shard", "cp"), ("tp",)),
        ("experts", dims.expert_grid, ("edp",), ("ep", "etp")),
    ):
        drawing.text(left, PAD + 36, title, weight=600)
        left += _block(drawing, grid, ranks, left, rows=rows, columns=columns, colour=columns[0]) + 70
    drawing.note("Same colour: the same part of a matrix, the same experts. Rows: what FSDP shards over.")
    return drawing.svg()


def _block(
    drawing: _Drawing,
    grid: RankGrid,
    ranks: list[int],
    left: int,
    *,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    colour: str,
) -> int:
    """Draw ranks as a table with named rows and columns, axes of one rank left out of the names; return its width."""
    sizes = dict(zip(grid.axes, grid.sizes, strict=True))
    named = {axes: [axis for axis in axes if sizes[axis] > 1] for axes in (rows, columns)}
    start, left = left, left + 12 + max(8 * len(_place(grid, rank, named[rows])) for rank in ranks)
    top = PAD + 72
    for rank in ranks:
        place = grid.coordinates(rank)
        row, column = (
            RankGrid(axes, tuple(sizes[axis] for axis in axes)).rank({axis: place[axis] for axis in axes})
            for axes in (rows, columns)
        )
        x, y = left + column * (CELL + GAP), top + row * (CELL + GAP)
        drawing.cell(x, y, str(rank), COLOURS[place[colour] % len(COLOURS)])
        if column == 0:
            label = _place(grid, rank, named[rows])
            drawing.text(left - 8 - 8 * len(label), y + CELL // 2 + 5, label, size=12)
        if row == 0:
            drawing.text(x + 8, top - 8, _place(grid, rank, named[columns]), size=12)
    return left - start + math.prod(sizes[axis] for axis in columns) * (CELL + GAP)


def _place(grid: RankGrid, rank: int, axes: list[str]) -> str:
    """A rank's place on some axes: ``dp_shard 0 cp 1``."""
    return " ".join(f"{axis} {grid.coordinates(rank)[axis]}" for axis in axes)


class _Drawing:
    """Shapes so far, and how far they reach."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.shapes: list[str] = []
        self.width = self.height = 0
        self.text(PAD, PAD + 8, title, size=15, weight=700)

    def cell(self, x: int, y: int, label: str, fill: str) -> None:
        self.shapes.append(
            f"<rect x='{x}' y='{y}' width='{CELL}' height='{CELL}' rx='6' fill='{fill}' stroke='{LINE}'/>"
            f"<text x='{x + CELL // 2}' y='{y + CELL // 2 + 5}' text-anchor='middle' fill='{INK}'>{label}</text>"
        )
        self._reach(x + CELL, y + CELL)

    def text(self, x: int, y: int, text: str, *, size: int = 14, weight: int = 400) -> None:
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        self.shapes.append(
            f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' fill='{INK}'>{escaped}</text>"
        )
        self._reach(x + int(len(text) * size * 0.56), y)

    def note(self, text: str) -> None:
        """A line below everything."""
        self.text(PAD, self.height + 26, text, size=12)

    def svg(self) -> str:
        width, height = self.width + PAD, self.height + PAD
        # An explicit background: readers with a dark scheme see the same picture.
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
            f"{FONT} font-size='14' role='img'><title>{self.title}</title>"
            f"<rect width='{width}' height='{height}' fill='{PAPER}'/>{''.join(self.shapes)}</svg>\n"
        )

    def _reach(self, x: int, y: int) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)
