"""Drawings of docs/layouts.md: the ranks of a layout, as dense parameters and as experts see them."""

from __future__ import annotations

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
    """The ranks of a dense layout: a block per pipeline rank, a row per data rank, tensor ranks beside each other."""
    grid = parse_layout(text).parallel_dims(moe=False).dense_grid
    drawing = _Drawing(f"{text}: {grid.size} ranks")
    left = PAD + 40
    for stage in range(grid.sizes[0]):
        block = [rank for rank in range(grid.size) if grid.coordinates(rank)["pp"] == stage]
        width = _block(drawing, grid, block, left, PAD + 60, rows="dp_shard", columns="tp", colour="dp_shard")
        drawing.text(left, PAD + 34, f"pipeline rank {stage}: layers of its stages", weight=600)
        drawing.text(left, PAD + 52, "beside each other: t", size=12)
        left += max(width, 200) + 60
    drawing.text(PAD, PAD + 92, "d", size=12)
    drawing.note("Same colour: one data rank, whose tensor ranks share every matrix. Below one another: FSDP's shards.")
    return drawing.svg()


def draw_views(text: str) -> str:
    """The same ranks twice: who shares a dense parameter, and who shares an expert."""
    dims = parse_layout(text).parallel_dims(moe=True)
    drawing = _Drawing(f"{text}: {dims.world_size} ranks, twice")
    ranks = list(range(dims.world_size))
    left = PAD + 20
    drawing.text(left, PAD + 34, f"dense: dp_shard {dims.dp_shard} x cp {dims.cp} x tp {dims.tp}", weight=600)
    drawing.text(left, PAD + 52, "row: d and c, which FSDP shards over; beside each other: t", size=12)
    width = _block(drawing, dims.dense_grid, ranks, left, PAD + 60, rows=("dp_shard", "cp"), columns="tp", colour="tp")
    left += max(width, 340) + 40
    drawing.text(left, PAD + 34, f"experts: edp {dims.edp} x ep {dims.ep} x etp {dims.etp}", weight=600)
    drawing.text(left, PAD + 52, "row: edp, which FSDP shards over; beside each other: e", size=12)
    _block(drawing, dims.expert_grid, ranks, left, PAD + 60, rows="edp", columns=("ep", "etp"), colour="ep")
    drawing.note("Same colour: the same part of a matrix (left), the same experts (right). The numbers are ranks.")
    return drawing.svg()


def _block(
    drawing: _Drawing,
    grid: RankGrid,
    ranks: list[int],
    left: int,
    top: int,
    *,
    rows: str | tuple[str, ...],
    columns: str | tuple[str, ...],
    colour: str,
) -> int:
    """Draw ranks as a table and return its width."""
    places = {rank: grid.coordinates(rank) for rank in ranks}
    sizes = dict(zip(grid.axes, grid.sizes, strict=True))

    def index(rank: int, axes: str | tuple[str, ...]) -> int:
        value = 0
        for axis in (axes,) if isinstance(axes, str) else axes:
            value = value * sizes[axis] + places[rank][axis]
        return value

    for rank in ranks:
        x = left + index(rank, columns) * (CELL + GAP)
        y = top + index(rank, rows) * (CELL + GAP)
        drawing.cell(x, y, str(rank), COLOURS[places[rank][colour] % len(COLOURS)])
    return (max(index(rank, columns) for rank in ranks) + 1) * (CELL + GAP)


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
        # A background of its own: readers with a dark scheme see the same picture.
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
            f"{FONT} font-size='14' role='img'><title>{self.title}</title>"
            f"<rect width='{width}' height='{height}' fill='{PAPER}'/>{''.join(self.shapes)}</svg>\n"
        )

    def _reach(self, x: int, y: int) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)
