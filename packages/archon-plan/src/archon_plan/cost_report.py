"""Prints an engine's memory, traffic and time."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from archon_core.cli.console import print_table, print_text
from archon_plan.answer import Answer, EngineAnswer
from archon_plan.devices import Device
from archon_plan.numbers import GIB, count, gib, percent, seconds
from archon_plan.results import MemoryPart, Transfer

COLOURS = ("blue", "green", "yellow", "magenta", "cyan", "red", "bright_blue", "bright_green", "bright_yellow")
BLOCKS = "█▓▒░"
MOST_COLUMNS = 100
SMALL = 1e-3
"""Transfers with less than this share of all bytes are printed as one row."""


def print_memory(answer: Answer, engine: EngineAnswer) -> None:
    """Print the memory of the fullest rank as a table and a bar, and the total of every pipeline rank."""
    fullest = engine.fullest
    parts = list(fullest.parts)
    kept = answer.peak(engine) - fullest.total
    if kept > 0:
        names = ", ".join(other.plan.role for other in answer.sharing(engine) if other is not engine)
        parts.append(MemoryPart("other engines", kept, f"weights and optimizer of {names} on the same ranks"))
    which = f" (pipeline rank {fullest.pipeline_rank})" if len(engine.memory) > 1 else ""
    print_parts(f"memory of the fullest rank{which}", parts, answer.device)
    if len(engine.memory) > 1:
        totals = ", ".join(f"{memory.pipeline_rank}: {gib(memory.total)}" for memory in engine.memory)
        print_text(f"pipeline ranks: {totals}")


def print_parts(title: str, parts: Sequence[MemoryPart], device: Device) -> None:
    """Print parts of a device's memory as a table and a bar."""
    parts = [part for part in parts if part.bytes]
    total = sum(part.bytes for part in parts)
    print_text(Text(title, "bold"))
    rows: list[tuple[str | Text, ...]] = []
    for index, part in enumerate(parts):
        mark = Text(_block(index), _colour(index))
        rows.append((mark, part.name, gib(part.bytes), percent(part.bytes / total if total else 0), part.note))
    rows.append(("", "total", gib(total), "", f"of {gib(device.memory)} on {device.name}"))
    print_table(("", "part", "size", "share", "note"), rows)
    print_text("")
    Console().print(memory_bar(parts, device.memory, Console().width))


def memory_bar(parts: Sequence[MemoryPart], capacity: float, width: int) -> Text:
    """A bar of at most ``width`` columns: one run of blocks per part, dots for what is free, ``!`` beyond capacity.

    Runs end at the rounded cumulative sums, so that their lengths add up.
    """
    total = sum(part.bytes for part in parts)
    label = f" {total / GIB:.1f} of {capacity / GIB:.1f} GiB"
    columns = max(10, min(width, MOST_COLUMNS) - len(label) - 2)
    scale = columns / max(total, capacity)
    bar, filled, used = Text("["), 0, 0.0
    for index, part in enumerate(parts):
        used += part.bytes
        end = round(used * scale)
        inside = max(min(end, round(capacity * scale)) - filled, 0)
        bar.append(_block(index) * inside, _colour(index))
        bar.append("!" * (end - filled - inside), "bold red")
        filled = max(filled, end)
    bar.append("·" * (columns - filled), "dim")
    return bar.append("]").append(label)


def _block(index: int) -> str:
    return BLOCKS[index % len(BLOCKS)]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def print_traffic(engine: EngineAnswer) -> None:
    """Print what a rank sends in a step, of the pipeline rank that sends most."""
    if not engine.transfers:
        print_text("a rank sends nothing to others")
        return
    by_rank: dict[int, list[Transfer]] = {}
    for transfer in engine.transfers:
        by_rank.setdefault(transfer.pipeline_rank, []).append(transfer)
    number, sent = max(by_rank.items(), key=lambda entry: sum(transfer.bytes for transfer in entry[1]))
    which = f" of pipeline rank {number}" if engine.plan.setting.dims.pp > 1 else ""
    print_text(Text(f"sent by a rank{which} in one step", "bold"))
    total = sum(transfer.bytes for transfer in sent)
    large = [transfer for transfer in sent if transfer.bytes >= SMALL * total]
    rows = [
        (
            transfer.axis,
            str(transfer.size),
            transfer.collective,
            transfer.purpose,
            f"{transfer.calls:,.0f}",
            gib(transfer.bytes),
            "yes" if transfer.overlaps else "no",
        )
        for transfer in sorted(large, key=lambda transfer: -transfer.bytes)
    ]
    if len(large) < len(sent):
        rest = [transfer for transfer in sent if transfer.bytes < SMALL * total]
        calls = sum(transfer.calls for transfer in rest)
        bytes_sent = sum(transfer.bytes for transfer in rest)
        rows.append(("", "", f"{len(rest)} others", "", f"{calls:,.0f}", gib(bytes_sent), ""))
    rows.append(("", "", "total", "", "", gib(total), ""))
    print_table(("axis", "ranks", "collective", "of", "calls", "bytes", "overlaps"), rows)


def print_time(engine: EngineAnswer) -> None:
    """Print the time of a step with its parts."""
    time = engine.time
    what = "one optimizer step" if engine.plan.setting.trains else "one pass"
    print_text(Text(f"time of {what}: {seconds(time.total)}", "bold"))
    rows = [
        (name, seconds(value), percent(value / time.total if time.total else 0))
        for name, value in sorted(time.parts.items(), key=lambda entry: -entry[1])
        if value > 0
    ]
    print_table(("part", "time", "share"), rows)
    tokens = engine.plan.setting.tokens
    facts = [
        f"{tokens.n_micro_batches} x {tokens.per_micro_batch:,} tokens on each data rank",
        f"{count(time.tokens_per_second)} tokens/s",
        f"{count(time.flops)}FLOP",
        f"MFU {percent(time.mfu)}",
    ]
    if engine.plan.setting.dims.pp > 1:
        facts.append(f"bubble {percent(time.bubble)}")
    print_text("; ".join(facts))
    if time.limit:
        print_text(f"limited by {time.limit}")
