"""The answer as one HTML page: no scripts, nothing to load, readable on a phone and on paper."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from archon_core.page.charts import (
    Bar,
    colours_of,
    draw_bars,
    draw_legend,
    draw_pipeline,
    draw_table,
    with_others,
)
from archon_core.page.parts import folded, list_of_bars, paragraph, remark, tiles
from archon_core.page.style import STYLE
from archon_plan.answer import Answer, EngineAnswer
from archon_plan.devices import Device
from archon_plan.layout_report import describe_meshes
from archon_plan.numbers import count, gib, percent, seconds
from archon_plan.results import RankMemory, Transfer
from archon_plan.rl import RLPlan
from archon_plan.run_section import run_section
from archon_plan.splits import Split
from archon_plan.timing import StepClock


@dataclass(frozen=True)
class Found:
    """The result of a search, as a table.

    Attributes:
        title: what was searched.
        head: titles of the columns.
        rows: texts, the best first.
        note: such as the least number of devices on which the model fits.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def write_page(
    path: Path,
    answer: Answer,
    *,
    rl: RLPlan | None = None,
    splits: Sequence[Split] = (),
    sampling: RankMemory | None = None,
    found: Found | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: the file, which is replaced.
        answer: memory, traffic and time of every engine.
        rl: the plan of the whole run, if it samples.
        splits: divisions of its devices, the fastest first.
        sampling: memory of the fullest device while it samples.
        found: layouts of a search.
        notes: further assumptions.
    """
    path.write_text(
        render_page(answer, rl=rl, splits=splits, sampling=sampling, found=found, notes=notes), encoding="utf-8"
    )


def render_page(
    answer: Answer,
    *,
    rl: RLPlan | None = None,
    splits: Sequence[Split] = (),
    sampling: RankMemory | None = None,
    found: Found | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as text; see ``write_page``."""
    parts = [f"<h1>{escape(answer.request.title)}</h1>", *_summary(answer, rl)]
    if rl is not None:
        parts += run_section(rl, splits)
        if sampling is not None:
            parts += _sampling_memory(sampling, rl.run.server_device or answer.device)
    if found is not None:
        parts += [
            f"<h2>{escape(found.title)}</h2>",
            paragraph(found.note),
            draw_table(found.head, found.rows, marked=0),
        ]
    for engine in answer.engines:
        parts += _engine(answer, engine)
    parts += _assumptions(answer, notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>archon plan: {escape(answer.request.title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    )


def _summary(answer: Answer, rl: RLPlan | None) -> Iterator[str]:
    device = answer.device
    ranks = max(engine.plan.setting.dims.world_size for engine in answer.engines)
    if rl is not None:
        ranks = rl.run.trainer_devices + rl.run.server_devices
    yield remark(f"Planned by archon plan for {ranks:,} x {device.name}; nothing was run.")
    if answer.fits:
        text = f"Fits: {gib(-answer.shortfall)} of {gib(device.memory)} free on the fullest device."
        yield f'<p class="good">{escape(text)}</p>'
    else:
        text = f"Does not fit: {gib(answer.shortfall)} more than the {gib(device.memory)} of a device."
        yield f'<p class="bad">{escape(text)}</p>'


def _engine(answer: Answer, engine: EngineAnswer) -> Iterator[str]:
    plan, time = engine.plan, engine.time
    setting = plan.setting
    yield f"<h2>{escape(plan.role)}: {escape(plan.request.layout)}</h2>"
    meshes = " ".join(describe_meshes(setting).split())
    yield paragraph(f"{plan.request.model.name}, {count(setting.anatomy.n_parameters)} parameters. {meshes}.")
    values = {
        "memory, fullest device": gib(answer.peak(engine)),
        "step" if setting.trains else "pass": seconds(time.total),
        "tokens/s": count(time.tokens_per_second),
        "MFU": percent(time.mfu),
    }
    if setting.dims.pp > 1:
        values["bubble"] = percent(time.bubble)
    yield tiles(values)
    if time.limit:
        yield paragraph(f"Limited by {time.limit}.")
    yield from _memory(answer, engine)
    yield from _time(engine)
    yield from _traffic(engine.transfers, pipelined=setting.dims.pp > 1)
    if setting.actions:
        timed = StepClock(setting, answer.device).timeline()
        yield "<h3>Pipeline</h3>"
        schedule = setting.schedule.name if setting.schedule and setting.trains else "forward passes"
        yield remark(f"{schedule}, {setting.tokens.n_micro_batches} micro-batches.")
        yield draw_pipeline(timed, setting.stage_plan.rank_of)


def _memory(answer: Answer, engine: EngineAnswer) -> Iterator[str]:
    others = answer.peak(engine) - engine.fullest.total
    bars = []
    for memory in engine.memory:
        parts = {part.name: part.bytes for part in memory.parts}
        if others > 0:
            parts["other engines"] = others
        label = f"rank {memory.pipeline_rank}" if len(engine.memory) > 1 else "each rank"
        bars.append(Bar(label, with_others(parts, answer.device.memory / 150), gib(sum(parts.values()))))
    yield "<h3>Memory</h3>"
    which = "Of the fullest rank of each pipeline rank, at the peak." if len(bars) > 1 else "At the peak."
    yield remark(f"{which} The line is the memory of {answer.device.name}, {gib(answer.device.memory)}.")
    colours = colours_of(bars)
    yield draw_bars(bars, limit=answer.device.memory, colours=colours)
    yield draw_legend(colours)
    rows = [
        (part.name, gib(part.bytes), percent(part.bytes / engine.fullest.total), part.note)
        for part in engine.fullest.parts
    ]
    yield folded("Table of the fullest rank", draw_table(("part", "size", "share", ""), rows))


def _sampling_memory(memory: RankMemory, device: Device) -> Iterator[str]:
    parts = {part.name: part.bytes for part in memory.parts}
    bars = [Bar("a device", parts, gib(memory.total))]
    yield "<h3>Memory while sampling</h3>"
    yield remark(f"Of the fullest device that samples. The line is the memory of {device.name}, {gib(device.memory)}.")
    yield draw_bars(bars, limit=device.memory)
    yield draw_legend(colours_of(bars))
    yield "".join(remark(f"{part.name}: {part.note}.") for part in memory.parts if part.note)


def _time(engine: EngineAnswer) -> Iterator[str]:
    parts = dict(sorted(engine.time.parts.items(), key=lambda entry: -entry[1]))
    yield "<h3>Time</h3>"
    what = "one optimizer step" if engine.plan.setting.trains else "one pass"
    tokens = engine.plan.setting.tokens
    each = f"{tokens.n_micro_batches} micro-batches of {tokens.per_micro_batch:,} tokens on each data rank"
    yield remark(f"Of {what}, on the busiest pipeline rank: {each}.")
    shown = with_others(parts, engine.time.total / 200)
    yield list_of_bars((name, value, seconds(value)) for name, value in shown.items())


def _traffic(transfers: Sequence[Transfer], *, pipelined: bool) -> Iterator[str]:
    if not transfers:
        return
    by_rank: dict[int, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        by_rank[transfer.pipeline_rank].append(transfer)
    number, sent = max(by_rank.items(), key=lambda entry: sum(transfer.bytes for transfer in entry[1]))
    by_axis: dict[str, dict[str, float]] = defaultdict(dict)
    sizes = {}
    for transfer in sorted(sent, key=lambda transfer: -transfer.bytes):
        parts = by_axis[transfer.axis]
        parts[transfer.purpose] = parts.get(transfer.purpose, 0.0) + transfer.bytes
        sizes[transfer.axis] = transfer.size
    most = max(sum(parts.values()) for parts in by_axis.values())
    bars = [
        Bar(f"{axis} ({sizes[axis]})", with_others(parts, most / 100), gib(sum(parts.values())))
        for axis, parts in sorted(by_axis.items(), key=lambda entry: -sum(entry[1].values()))
    ]
    yield "<h3>Traffic</h3>"
    which = f"pipeline rank {number} sends" if pipelined else "it sends"
    yield remark(f"What a rank sends in one step; {which} most. In brackets: ranks of the group.")
    colours = colours_of(bars)
    yield draw_bars(bars, colours=colours)
    yield draw_legend(colours)
    rows = [
        (
            f"{transfer.axis} ({transfer.size})",
            transfer.collective,
            transfer.purpose,
            f"{transfer.calls:,.0f}",
            gib(transfer.bytes),
            "yes" if transfer.overlaps else "no",
        )
        for transfer in sorted(sent, key=lambda transfer: -transfer.bytes)
    ]
    yield folded("Table", draw_table(("axis", "collective", "of", "calls", "bytes", "overlaps"), rows))


def _assumptions(answer: Answer, notes: Sequence[str]) -> Iterator[str]:
    told = dict.fromkeys([*notes, *answer.request.notes, *(note for one in answer.engines for note in one.plan.notes)])
    yield "<h2>Assumptions</h2>"
    if told:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in told) + "</ul>"
    decisions = [*answer.request.decisions, *(one for engine in answer.engines for one in engine.plan.decisions)]
    if decisions:
        rows = [(one.option, one.requested, one.effective, one.reason) for one in decisions]
        yield folded("Decisions that a run would take", draw_table(("option", "asked", "in effect", "reason"), rows))
    figures = [(name, _figure(value), source) for name, value, source in answer.device.rows()]
    yield folded(f"Figures of {answer.device.name}", draw_table(("figure", "value", "source"), figures))


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
