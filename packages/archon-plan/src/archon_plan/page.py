"""The answer as one HTML page: no scripts, nothing to load, readable on a phone and on paper."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from archon_plan.answer import Answer, EngineAnswer
from archon_plan.charts import (
    Bar,
    Span,
    colours_of,
    draw_axis,
    draw_bars,
    draw_columns,
    draw_lane,
    draw_legend,
    draw_pipeline,
    draw_table,
    with_others,
)
from archon_plan.layout_report import describe_meshes
from archon_plan.numbers import count, gib, percent, seconds
from archon_plan.page_style import STYLE
from archon_plan.results import Transfer
from archon_plan.rl import RLPlan
from archon_plan.rl_report import describe_samples, describe_servers, parts_of_step
from archon_plan.splits import Split
from archon_plan.timing import StepClock

N_STEPS = 6
"""Steps of a run that its timeline shows."""

BATCH_COLOURS = ("#3168ac", "#be5e00", "#0c7a68", "#6c4a96")


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
    found: Found | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: the file, which is replaced.
        answer: memory, traffic and time of every engine.
        rl: the plan of the whole run, if it samples.
        splits: divisions of its devices, the fastest first.
        found: layouts of a search.
        notes: further assumptions.
    """
    path.write_text(render_page(answer, rl=rl, splits=splits, found=found, notes=notes), encoding="utf-8")


def render_page(
    answer: Answer,
    *,
    rl: RLPlan | None = None,
    splits: Sequence[Split] = (),
    found: Found | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as text; see ``write_page``."""
    parts = [f"<h1>{escape(answer.request.title)}</h1>", *_summary(answer)]
    if rl is not None:
        parts += _run(rl, splits)
    if found is not None:
        parts += [
            f"<h2>{escape(found.title)}</h2>",
            _paragraph(found.note),
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


def _summary(answer: Answer) -> Iterator[str]:
    device = answer.device
    ranks = max(engine.plan.setting.dims.world_size for engine in answer.engines)
    yield _note(f"Planned by archon plan for {ranks:,} x {device.name}; nothing was run.")
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
    yield _paragraph(f"{plan.request.model.name}, {count(setting.anatomy.n_parameters)} parameters. {meshes}.")
    facts = {
        "memory, fullest device": gib(answer.peak(engine)),
        "step" if setting.trains else "pass": seconds(time.total),
        "tokens/s": count(time.tokens_per_second),
        "MFU": percent(time.mfu),
    }
    if setting.dims.pp > 1:
        facts["bubble"] = percent(time.bubble)
    yield _facts(facts)
    if time.limit:
        yield _paragraph(f"Limited by {time.limit}.")
    yield from _memory(answer, engine)
    yield from _time(engine)
    yield from _traffic(engine.transfers, pipelined=setting.dims.pp > 1)
    if setting.actions:
        timed = StepClock(setting, answer.device, engine.transfers).timeline()
        yield "<h3>Pipeline</h3>"
        schedule = setting.schedule.name if setting.schedule and setting.trains else "forward passes"
        yield _note(f"{schedule}, {setting.tokens.n_micro_batches} micro-batches.")
        yield draw_pipeline(timed, setting.stage_plan.rank_of)


def _memory(answer: Answer, engine: EngineAnswer) -> Iterator[str]:
    others = answer.peak(engine) - engine.fullest.total
    bars = []
    for memory in engine.memory:
        parts = {part.name: part.bytes for part in memory.parts}
        if others > 0:
            parts["other engines"] = others
        label = f"rank {memory.pipeline_rank}" if len(engine.memory) > 1 else "each rank"
        bars.append(Bar(label, parts, gib(sum(parts.values()))))
    yield "<h3>Memory</h3>"
    which = "Of the fullest rank of each pipeline rank, at the peak." if len(bars) > 1 else "At the peak."
    yield _note(f"{which} The line is the memory of {answer.device.name}, {gib(answer.device.memory)}.")
    colours = colours_of(bars)
    yield draw_bars(bars, limit=answer.device.memory, colours=colours)
    yield draw_legend(colours)
    rows = [
        (part.name, gib(part.bytes), percent(part.bytes / engine.fullest.total), part.note)
        for part in engine.fullest.parts
    ]
    yield _folded("Table of the fullest rank", draw_table(("part", "size", "share", ""), rows))


def _time(engine: EngineAnswer) -> Iterator[str]:
    parts = dict(sorted(engine.time.parts.items(), key=lambda entry: -entry[1]))
    yield "<h3>Time</h3>"
    what = "one optimizer step" if engine.plan.setting.trains else "one pass"
    tokens = engine.plan.setting.tokens
    each = f"{tokens.n_micro_batches} micro-batches of {tokens.per_micro_batch:,} tokens on each data rank"
    yield _note(f"Of {what}, on the busiest pipeline rank: {each}.")
    shown = with_others(parts, engine.time.total / 200)
    yield _list_of_bars((name, value, seconds(value)) for name, value in shown.items())


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
    yield _note(f"What a rank sends in one step; {which} most. In brackets: ranks of the group.")
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
    yield _folded("Table", draw_table(("axis", "collective", "of", "calls", "bytes", "overlaps"), rows))


def _run(plan: RLPlan, splits: Sequence[Split]) -> Iterator[str]:
    run, pace = plan.run, plan.pace
    yield "<h2>The run</h2>"
    yield _paragraph(f"{describe_samples(plan)}; {describe_servers(plan)}; staleness up to {run.staleness}.")
    yield _facts(
        {
            "steps per hour": f"{plan.steps_per_hour:,.1f}",
            "step": seconds(pace.seconds),
            "the trainer waits": percent(pace.trainer_waits),
            "places of servers empty": percent(pace.servers_wait),
            "limit": plan.limit,
            "sampled tokens/s": count(run.samples.sequences * run.samples.lengths.mean / pace.seconds),
        }
    )
    yield "<h3>Parts of a step</h3>"
    yield _list_of_bars((name, value, seconds(value)) for name, value, _ in parts_of_step(plan))
    yield "<h3>First steps</h3>"
    yield _note("One colour per batch. The trainer's lane includes publications.")
    yield from _lanes(plan)
    if len(plan.paces) > 1:
        yield "<h3>Steps per hour by bound of staleness</h3>"
        rates = {str(bound): 3600 / one.seconds for bound, one in plan.paces.items()}
        yield draw_columns(rates, {name: f"{rate:,.1f}" for name, rate in rates.items()}, marked=str(run.staleness))
    if splits:
        yield from _splits(plan, splits)


def _lanes(plan: RLPlan) -> Iterator[str]:
    steps = plan.timeline(N_STEPS)
    end = steps[-1].published
    sampled, trained = [], []
    busy = 0.0
    for number, step in enumerate(steps):
        colour = BATCH_COLOURS[number % len(BATCH_COLOURS)]
        # Batches overlap on the servers: each is drawn from where the one before has ended.
        if step.complete > busy and step.begun < end:
            text = f"batch {number} is sampled"
            sampled.append(Span(colour, max(step.begun, busy), min(step.complete, end), text))
        busy = max(busy, step.complete)
        trained.append(Span(colour, step.taken, step.published, f"step {number} trains on batch {number}"))
    yield draw_lane("sampling" if plan.run.colocated else "servers", sampled, 0.0, end)
    yield draw_lane("training" if plan.run.colocated else "trainer", trained, 0.0, end)
    yield draw_axis(0.0, end, "s")


def _splits(plan: RLPlan, splits: Sequence[Split]) -> Iterator[str]:
    yield "<h3>How many devices should sample</h3>"
    total = splits[0].trainer + splits[0].servers
    yield _note(f"Steps per hour on {total} devices, by the number that samples; the rest trains.")
    shown = sorted(splits[:10], key=lambda split: split.servers)
    rows = [
        (
            f"{split.servers} sample, {split.trainer} train",
            f"{split.plan.steps_per_hour:,.1f}",
            seconds(split.plan.step_seconds),
            percent(split.plan.pace.trainer_waits),
            percent(split.plan.pace.servers_wait),
            split.plan.limit,
        )
        for split in shown
    ]
    head = ("devices", "steps/h", "step", "trainer waits", "places empty", "limit")
    yield draw_table(head, rows, marked=shown.index(splits[0]))


def _assumptions(answer: Answer, notes: Sequence[str]) -> Iterator[str]:
    told = dict.fromkeys([*notes, *answer.request.notes, *(note for one in answer.engines for note in one.plan.notes)])
    yield "<h2>Assumptions</h2>"
    if told:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in told) + "</ul>"
    decisions = [*answer.request.decisions, *(one for engine in answer.engines for one in engine.plan.decisions)]
    if decisions:
        rows = [(one.option, one.requested, one.effective, one.reason) for one in decisions]
        yield _folded("Decisions that a run would take", draw_table(("option", "asked", "in effect", "reason"), rows))
    figures = [(name, _figure(value), source) for name, value, source in answer.device.rows()]
    yield _folded(f"Figures of {answer.device.name}", draw_table(("figure", "value", "source"), figures))


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _list_of_bars(entries: Iterable[tuple[str, float, str]]) -> str:
    bars = [Bar(name, {"": value}, text) for name, value, text in entries]
    return draw_bars(bars, colours={"": "var(--accent)"}).replace('class="bars"', 'class="bars long"', 1)


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>" for name, value in facts.items())
    return f'<ul class="facts">{items}</ul>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
