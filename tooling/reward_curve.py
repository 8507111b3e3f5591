"""Draws the held-out reward of a run as SVG: ``python tooling/reward_curve.py RUN_FOLDER FILE.svg``.

The picture in README.md is drawn by it from a run of ``hatch run demo``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

REWARD = "eval/reward"
WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 20, 44


def read_points(run: Path) -> list[tuple[int, float]]:
    """Step and held-out reward of every evaluation of reinforcement learning, in order."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row[REWARD]) for row in rows if REWARD in row]


def draw(points: list[tuple[int, float]]) -> str:
    """The curve, with the first and the last value written beside their points.

    Colours are of middle lightness, readable on a light and on a dark page.
    """
    last_step = max(step for step, _ in points)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y(reward: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * reward

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="13" fill="#7a7f87">',
        f"<title>Held-out reward against the training step: {points[0][1]:.2f} to {points[-1][1]:.2f}</title>",
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#7a7f87" '
            f'stroke-opacity="0.3"/><text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for step in range(0, last_step + 1, 20):
        lines.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">GRPO step</text>')
    lines.append(
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "held-out reward</text>"
    )
    path = " ".join(f"{x(step):.1f},{y(reward):.1f}" for step, reward in points)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#5b6ee1" stroke-width="2.5"/>')
    for step, reward in points:
        lines.append(f'<circle cx="{x(step):.1f}" cy="{y(reward):.1f}" r="3.5" fill="#5b6ee1"/>')
    for (step, reward), anchor, shift in ((points[0], "start", 8), (points[-1], "end", -4)):
        lines.append(
            f'<text x="{x(step) + shift:.1f}" y="{y(reward) - 10:.1f}" text-anchor="{anchor}" fill="#5b6ee1" '
            f'font-weight="bold">{reward:.2f}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(read_points(source)), encoding="utf-8")
