"""The steps of a run as a table, and totals of asynchronous runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archon_core.cli.console import fit_columns
from archon_report.series import HELD_OUT_REWARD

COLUMNS: Mapping[str, tuple[str, str]] = {
    "reward": ("reward", "{:.3f}"),
    "loss": ("loss", "{:.4f}"),
    "seconds": ("time/step", "{:.1f}"),
    "tokens/s": ("tokens_per_second", "{:.0f}"),
    "stale": ("staleness", "{:.2f}"),
    "running": ("collector/running", "{:.0f}"),
    "queue": ("collector/waiting", "{:.0f}"),
    "waited s": ("collector/waited_seconds", "{:.1f}"),
    "idle": ("collector/server_idle", "{:.0%}"),
    "reward s": ("collector/reward_seconds", "{:.2f}"),
    "held out": ("eval/reward", "{:.3f}"),
    "held-out loss": ("eval/loss", "{:.4f}"),
}
"""Heading -> metric, format. A column without a value in any row is left out."""

AGE, DROPPED, VERSION, STALE = "staleness/", "dropped/", "server_version/", "stale_prompts"
TRAINED = "trained_tokens"
"""Weight of a step's shares of tokens by staleness."""


LEFT_OUT_FIRST = ("reward s", "running", "queue", "idle", "waited s")
"""Columns that a narrow terminal lacks; the page has all."""


@dataclass(frozen=True)
class StepTable:
    """The steps as a table.

    Attributes:
        headings: of the columns.
        rows: one per step, with a cell per column.
        left_out: headings of columns that did not fit.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: Sequence[str] = ()


def table_of(rows: Sequence[Mapping[str, float]], width: int | None = None) -> StepTable:
    """The table of the steps.

    Args:
        rows: of the steps.
        width: of the terminal, in characters; columns that do not fit are left out. ``None`` for all columns.
    """
    rows = [_with_held_out_reward(row) for row in rows]
    columns = {name: one for name, one in COLUMNS.items() if any(one[0] in row for row in rows)}
    left_out: list[str] = []
    cells = _cells(rows, columns)
    for name in filter(columns.__contains__, LEFT_OUT_FIRST):
        if width is None or fit_columns([["step", *columns], *cells], width) is not None:
            break
        left_out.append(name)
        del columns[name]
        cells = _cells(rows, columns)
    return StepTable(["step", *columns], cells, left_out)


def _cells(rows: Sequence[Mapping[str, float]], columns: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    return [
        [
            str(row["step"]),
            *(layout.format(row[metric]) if metric in row else "" for metric, layout in columns.values()),
        ]
        for row in rows
    ]


def _with_held_out_reward(row: Mapping[str, float]) -> Mapping[str, float]:
    name = next((name for name in row if re.fullmatch(HELD_OUT_REWARD, name)), None)
    return row if name is None else {"eval/reward": row[name], **row}


def totals_of(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Lines about all these steps, of an asynchronous run."""
    asynchronous = [row for row in rows if "collector/running" in row]
    if not asynchronous:
        return []
    ages = sorted({int(name.removeprefix(AGE)) for row in asynchronous for name in row if name.startswith(AGE)})
    trained = {age: sum(row.get(f"{AGE}{age}", 0) * row.get(TRAINED, 0) for row in asynchronous) for age in ages}
    n_trained = sum(row.get(TRAINED, 0) for row in asynchronous)
    shares = ", ".join(f"{age}: {n / n_trained:.1%}" for age, n in trained.items()) if n_trained else "none"
    reasons = sorted({name for row in asynchronous for name in row if name.startswith(DROPPED)})
    dropped = {name.removeprefix(DROPPED): sum(row.get(name, 0) for row in asynchronous) for name in reasons}
    dropped["stale"] = sum(row.get(STALE, 0) for row in asynchronous)
    versions = {n.removeprefix(VERSION): int(v) for n, v in asynchronous[-1].items() if n.startswith(VERSION)}
    lost = ", ".join(f"{n:.0f} {reason.replace('_', ' ')}" for reason, n in dropped.items() if n)
    return [
        f"trained tokens by staleness: {shares}",
        f"dropped groups: {lost or 'none'}",
        "versions of the servers: " + (", ".join(f"{server} {v}" for server, v in versions.items()) or "unknown"),
    ]
