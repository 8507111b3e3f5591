"""The steps of a run as a table, and totals of asynchronous runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from archon_core.cli.console import fit_columns

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

SAMPLED_OFTEN = re.compile(r"eval/reward_avg@\d+")
"""The held-out reward of a run that samples several completions of every held-out record."""

AGE, DROPPED, VERSION, STALE = "staleness/", "dropped/", "server_version/", "stale_prompts"
TRAINED = "trained_tokens"
"""Weight of a step's shares of tokens by staleness."""


LEFT_OUT_FIRST = ("reward s", "running", "queue", "idle", "waited s")
"""Columns that a narrow terminal lacks; the page has all."""


def table_of(rows: Sequence[Mapping[str, float]], width: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the steps.

    Args:
        rows: of the steps.
        width: of the terminal, in characters; columns that do not fit are left out. ``None`` for all columns.
    """
    rows = [_with_held_out_reward(row) for row in rows]
    columns = {name: one for name, one in COLUMNS.items() if any(one[0] in row for row in rows)}
    found = _cells(rows, columns)
    for name in LEFT_OUT_FIRST:
        if width is None or fit_columns([found[0], *found[1]], width) is not None:
            break
        columns.pop(name, None)
        found = _cells(rows, columns)
    return found


def _cells(
    rows: Sequence[Mapping[str, float]], columns: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[list[str]]]:
    cells = [
        [
            str(row["step"]),
            *(layout.format(row[metric]) if metric in row else "" for metric, layout in columns.values()),
        ]
        for row in rows
    ]
    return ["step", *columns], cells


def _with_held_out_reward(row: Mapping[str, float]) -> Mapping[str, float]:
    name = next(filter(SAMPLED_OFTEN.fullmatch, row), None)
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
