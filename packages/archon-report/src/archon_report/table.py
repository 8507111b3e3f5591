"""The steps of a run as a table, and totals of asynchronous runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
}
"""Heading -> metric, format. A column without a value in any row is left out."""

AGE, DROPPED, VERSION, STALE = "staleness/", "dropped/", "server_version/", "stale_prompts"
TRAINED = "trained_tokens"
"""Weight of a step's shares of tokens by staleness."""


def table_of(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the steps."""
    columns = {name: one for name, one in COLUMNS.items() if any(one[0] in row for row in rows)}
    cells = [
        [
            str(row["step"]),
            *(layout.format(row[metric]) if metric in row else "" for metric, layout in columns.values()),
        ]
        for row in rows
    ]
    return ["step", *columns], cells


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
