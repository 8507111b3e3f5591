"""Drawings of docs/architecture.md: packages in layers, from their declared dependencies, and a batch in a step."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

INK, PAPER, LINE, SOFT = "#24292f", "#ffffff", "#8c959f", "#57606a"
LAYERS = ("#8ecae6", "#90be6d", "#ffb703", "#f6bd60", "#cdb4db")
FONT = "font-family='system-ui, sans-serif'"
BOX_WIDTH, BOX_HEIGHT, GAP, PAD = 165, 40, 14, 18

BATCH = (
    ("trainer", "Batch", "packed sequences"),
    ("step", "loss weights", "summed over ranks"),
    ("step", "micro-batches", "padded, cut over c"),
    ("module", "forward", "tp, cp, ep, pp"),
    ("head", "log-probabilities", "per token"),
    ("loss", "sums / weights", "then backward"),
    ("FSDP2", "gradients", "summed over ranks"),
    ("step", "norm and clip", "from placements"),
    ("optimizer", "weights", "version + 1"),
    ("rollout", "completions", "the next batch"),
)
"""Stages of a batch: the module that acts, the result, a remark."""


def pictures(root: Path) -> dict[str, str]:
    """File name -> SVG. ``root`` is the repository."""
    return {"packages.svg": draw_packages(read_dependencies(root)), "batch.svg": draw_batch()}


def read_dependencies(root: Path) -> dict[str, set[str]]:
    """Package -> the packages of this repository that it declares as dependencies."""
    found = {}
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        names = {re.split(r"[\[<>=! ]", dependency, maxsplit=1)[0] for dependency in project["dependencies"]}
        found[project["name"]] = {name for name in names if name.startswith("archon-")}
    return found


def layers_of(dependencies: dict[str, set[str]]) -> list[list[str]]:
    """The packages from the ground up: each stands above all that it depends on."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(other) for other in dependencies[name]), default=-1)
        return heights[name]

    layers: dict[int, list[str]] = {}
    for name in dependencies:
        layers.setdefault(height(name), []).append(name)
    return [sorted(layers[number]) for number in sorted(layers)]


def draw_packages(dependencies: dict[str, set[str]]) -> str:
    """Layers of packages; imports run downwards only."""
    layers = layers_of(dependencies)
    per_row = 4
    rows = [
        (number, layer[start : start + per_row])
        for number, layer in reversed(list(enumerate(layers)))
        for start in range(0, len(layer), per_row)
    ]
    width = 2 * PAD + per_row * BOX_WIDTH + (per_row - 1) * GAP
    shapes = []
    for row, (number, names) in enumerate(rows):
        y = PAD + row * (BOX_HEIGHT + GAP)
        # A row that is not full spreads over the whole width, so that a lower layer visibly carries the upper ones.
        box_width = (width - 2 * PAD - (len(names) - 1) * GAP) / len(names)
        for place, name in enumerate(names):
            x = PAD + place * (box_width + GAP)
            shapes.append(box(x, y, box_width, BOX_HEIGHT, name, LAYERS[number % len(LAYERS)]))
    height = PAD + len(rows) * (BOX_HEIGHT + GAP) + 18
    shapes.append(
        text(PAD, height - 6, "Imports run downwards only. Packages of one layer never import one another.", 12)
    )
    return picture("The packages in layers", width, height + 6, shapes)


def draw_batch() -> str:
    """The stages of a batch in a step, left to right, in two rows."""
    per_row = len(BATCH) // 2
    step, tall = 150, 62
    width = 2 * PAD + per_row * step
    shapes = []
    for number, (who, what, how) in enumerate(BATCH):
        row, place = divmod(number, per_row)
        x, y = PAD + place * step, PAD + row * (tall + 48)
        shapes.append(text(x + 4, y + 10, who, 12, SOFT))
        shapes.append(box(x, y + 18, step - 26, tall - 18, what, LAYERS[0 if row == 0 else 1]))
        shapes.append(text(x + 4, y + tall + 14, how, 11, SOFT))
        if number + 1 < len(BATCH) and place + 1 < per_row:
            arrow_y = y + 18 + (tall - 18) / 2
            shapes.append(f"<path d='M{x + step - 24} {arrow_y} h16 m-6 -5 l6 5 l-6 5' fill='none' stroke='{INK}'/>")
    turn_x, turn_y = PAD + per_row * step - 20, PAD + 18 + (tall - 18) / 2
    drop = tall + 48 - (tall - 18) / 2 - 8
    shapes.append(
        f"<path d='M{turn_x} {turn_y} h10 v{drop - 14} h{-(per_row * step - 50)} v14 m-5 -6 l5 6 l5 -6' fill='none' "
        f"stroke='{INK}' stroke-opacity='0.6'/>"
    )
    return picture("A batch in a training step", width, 2 * (tall + 48) + PAD, shapes)


def box(x: float, y: float, width: float, height: float, label: str, fill: str) -> str:
    """A box with a label in its middle."""
    return (
        f"<rect x='{x:.0f}' y='{y:.0f}' width='{width:.0f}' height='{height}' rx='6' fill='{fill}' stroke='{LINE}'/>"
        f"<text x='{x + width / 2:.0f}' y='{y + height / 2 + 5:.0f}' text-anchor='middle' fill='{INK}'>{label}</text>"
    )


def text(x: float, y: float, content: str, size: int, fill: str = INK) -> str:
    """A line of text that begins at a point."""
    return f"<text x='{x:.0f}' y='{y:.0f}' font-size='{size}' fill='{fill}'>{content}</text>"


def picture(title: str, width: int, height: int, shapes: list[str]) -> str:
    """An SVG of these shapes."""
    # An explicit background: the drawing looks the same in a dark scheme.
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"{FONT} font-size='14' role='img'><title>{title}</title>"
        f"<rect width='{width}' height='{height}' fill='{PAPER}'/>{''.join(shapes)}</svg>\n"
    )
