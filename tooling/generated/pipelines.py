"""Tables and pictures of docs/pipeline.md and docs/memory.md, replayed from the schedules themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from archon_core.contracts.pipeline import ActionKind, RankActions
from archon_core.plugins import ScheduleSpec
from archon_pipeline.placement import place_stages
from archon_pipeline.planned_view import plan_view
from archon_pipeline.plugin import archon_schedules
from archon_pipeline.simulator import simulate
from archon_pipeline.svg import render_svg
from archon_pipeline.timeline import count_peak_activations, weigh_peak_activations

SPECS: dict[str, ScheduleSpec] = {spec.name: spec for spec in archon_schedules()}
SIZES = [(p, factor * p) for p in (2, 4, 8) for factor in (1, 2, 4)]


def render_bubbles() -> str:
    """Idle over ideal time per schedule and size."""
    return _by_size(lambda actions, rank_of: f"{simulate(actions, rank_of).bubble:.3f}")


def render_peaks() -> str:
    """Peak activations of the fullest rank, in units of all its layers."""
    return _by_size(lambda actions, rank_of: f"{max(weigh_peak_activations(actions, len(rank_of))):g}")


def render_peaks_by_rank() -> str:
    """Peak activations of every rank of four, and what is left of them when they end with I."""
    rows = []
    for name in SPECS:
        actions, rank_of = _lists(name, 4, 16)
        unit = 4 / len(rank_of)
        for kinds, what in (("BW", "to the end of backward"), ("BI", "to the gradient of the input")):
            if kinds == "BW" or SPECS[name].splits_backward:
                rows.append([name, what, *(f"{unit * peak:g}" for peak in _peaks_until(actions, kinds))])
    return _table(["schedule", "kept", *(f"rank {rank}" for rank in range(4))], rows)


def render_warm_up() -> str:
    """Forward passes before the first backward pass, and the peak, by number of micro-batches, on two ranks."""
    rows = []
    for name in ("Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble"):
        for m in (2, 4, 8):
            actions, _ = _lists(name, 2, m)
            ahead = next(at for at, action in enumerate(actions[0]) if action.kind is not ActionKind.FORWARD)
            peak = max(count_peak_activations(actions))
            rows.append([name, str(m), str(ahead), str(peak), f"{peak / (2 * m):.3f}"])
    columns = ["schedule", "micro-batches", "forward passes first, rank 0", "peak, in stages", "share of the batch"]
    return _table(columns, rows)


def render_splits() -> str:
    """How many backward passes stay in two halves."""
    rows = []
    for p, m in SIZES:
        row = [str(p), str(m)]
        for name in ("InterleavedZeroBubble", "ZBVZeroBubble"):
            kinds = [action.kind for rank in _lists(name, p, m)[0] for action in rank]
            row.append(f"{100 * kinds.count(ActionKind.BACKWARD_WEIGHT) / (2 * p * m):.0f}%")
        rows.append(row)
    return _table(["p", "m", "InterleavedZeroBubble", "ZBVZeroBubble"], rows)


def pictures() -> dict[str, str]:
    """File name -> SVG of every schedule on four ranks."""
    drawn = {}
    for name in SPECS:
        title, view = plan_view(name, 4, 8, None, "1,1,1", 0.0)
        drawn[f"schedule-{name}.svg"] = render_svg([view], title)
    return drawn


def _lists(name: str, p: int, m: int) -> tuple[RankActions, tuple[int, ...]]:
    spec = SPECS[name]
    n_stages = p * spec.usual_stages_per_rank
    return spec.load()(p, n_stages, m), place_stages(spec.placement, p, n_stages)


def _by_size(cell: Callable[[RankActions, tuple[int, ...]], str]) -> str:
    rows = [[str(p), str(m), *(cell(*_lists(name, p, m)) for name in SPECS)] for p, m in SIZES]
    return _table(["p", "m", *SPECS], rows)


def _peaks_until(actions: RankActions, kinds: str) -> Iterable[int]:
    for rank in actions:
        live = peak = 0
        for action in rank:
            live += (action.kind is ActionKind.FORWARD) - (action.kind.value in kinds)
            peak = max(peak, live)
        yield peak


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
