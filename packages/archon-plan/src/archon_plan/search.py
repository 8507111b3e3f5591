"""Finds the best layouts of a number of devices: sizes of all axes, schedule, checkpointing, micro-batches.

All candidates process the same sequences per step. The search is best first: layouts wait in the order of a lower bound
of their time (``search_bounds``), then with each schedule and number of micro-batches in the order of a closer bound,
then with the fastest checkpointing that fits in order of their exact time. When exact times lead the queue, they are
the best: nothing behind them can be faster.

Lists of very many micro-batches are replayed only for what leads the queue. Before, a step of theirs is estimated: past
its beginning a schedule repeats itself, so further micro-batches add equal times, and no activations.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from archon_core.errors import ConfigError
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_plan.devices import Device
from archon_plan.largest_ranks import largest_ranks
from archon_plan.layout_space import ALL_AXES, micro_batch_numbers, valid_dims
from archon_plan.layouts import write_layout
from archon_plan.memory import rank_memory, whole_memory
from archon_plan.parts import forward_actions
from archon_plan.pipeline_plans import PipelinePlans
from archon_plan.results import RankMemory, StepTime
from archon_plan.search_bounds import Bounds
from archon_plan.setting import Checkpointing, Setting, Tokens
from archon_plan.timing import StepClock
from archon_plan.unit_times import UnitTimes

ESTIMATED_FROM = 6
"""Micro-batches per stage of a pipeline from which a step is estimated first."""

MODES: tuple[Checkpointing, ...] = ("none", "selective", "memory_budget", "full")


@dataclass(frozen=True)
class Sought:
    """What to search for.

    Attributes:
        anatomy: of the model.
        device: of every rank.
        sequences: of one optimizer step, on all ranks together.
        base: options that all candidates share: tokens have the mean length and the scored share; dims, stages,
            schedule, checkpointing and resharding are ignored. ``None`` for the defaults with compiled blocks.
        most_tokens: of a micro-batch (``mb_spec.max_tokens_per_mb``); ``None`` for no limit.
        axes: letters that may have a size above 1.
        modes: activation checkpointing to choose from, the one that keeps most first.
        schedules: names of pipeline schedules to choose from; ``None`` for all that are installed.
    """

    anatomy: ModelAnatomy
    device: Device
    sequences: int
    base: Setting | None = None
    most_tokens: int | None = None
    axes: str = ALL_AXES
    modes: tuple[Checkpointing, ...] = MODES
    schedules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Candidate:
    """A layout with the options that make it fastest.

    Attributes:
        layout: as it is written in a configuration.
        setting: all of it.
        time: of a step.
        tokens_per_second: of all ranks, padding left out.
        memory: of every pipeline rank.
    """

    layout: str
    setting: Setting
    time: StepTime
    tokens_per_second: float
    memory: tuple[RankMemory, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """The best layouts.

    Attributes:
        candidates: fastest first; of equal ones the first in lexicographic order of p, t, c, r, e, etp.
        layouts: number of valid layouts.
        too_large: of these, the ones whose states alone exceed the memory.
        settings: number of settings whose time was predicted.
    """

    candidates: tuple[Candidate, ...]
    layouts: int = 0
    too_large: int = 0
    settings: int = 0


Fits = Callable[[Setting, Device], bool]


def fits_in_memory(setting: Setting, device: Device) -> bool:
    """Whether the step fits on every pipeline rank."""
    return all(rank_memory(setting, rank, device).total <= device.memory for rank in largest_ranks(setting))


def search(sought: Sought, world: int, *, best: int = 5, fits: Fits = fits_in_memory) -> SearchResult:
    """The ``best`` layouts on ``world`` devices, by tokens per second.

    Args:
        sought: model, device, sequences and options.
        world: number of devices.
        best: how many layouts.
        fits: whether a setting fits in a device's memory.

    Raises:
        ConfigError: there are no sequences or no devices.
    """
    for what, number in (("sequences per step", sought.sequences), ("devices", world)):
        if number < 1:
            raise ConfigError(f"search: found {number} {what}; allowed is 1 or more; give at least 1")
    return _Search(sought, world, best, fits).run()


def least_devices(sought: Sought, most: int, *, fits: Fits = fits_in_memory) -> int | None:
    """The least number of devices, up to ``most``, on which some layout fits; ``None`` if there is none.

    Numbers are powers of two up to a node, then whole nodes.
    """
    per_node = sought.device.devices_per_node
    numbers = [1 << exponent for exponent in range(per_node.bit_length()) if 1 << exponent < per_node]
    numbers += range(per_node, most + 1, per_node)
    return next((n for n in numbers if n <= most and _Search(sought, n, 1, fits).fits_somewhere()), None)


@dataclass(order=True)
class _Node:
    """An entry of the queue.

    Attributes:
        bound: seconds that the step takes at least.
        progress: entries that are further come first where bounds are equal.
        place: of the layout among all, which makes the order deterministic.
        number: of the entry.
        dims: the layout.
        setting: a setting of it; ``None`` if only the layout is chosen.
        time: of the setting; ``None`` until it is predicted.
    """

    bound: float
    progress: int
    place: int
    number: int
    dims: ParallelDims = field(compare=False)
    setting: Setting | None = field(default=None, compare=False)
    time: StepTime | None = field(default=None, compare=False)


class _Search:
    def __init__(self, sought: Sought, world: int, best: int, fits: Fits) -> None:
        self._sought, self._world, self._best, self._fits = sought, world, best, fits
        base = sought.base or Setting(sought.anatomy, ParallelDims(), Tokens(1), compiles=sought.device.kind == "gpu")
        self._base = replace(base, anatomy=sought.anatomy, stages=None, schedule=None, actions=())
        self._units = UnitTimes(sought.device)
        self._queue: list[_Node] = []
        self._numbers = iter(range(1 << 62))
        self._settings = 0
        self._plans = PipelinePlans(sought.anatomy, sought.schedules)
        self._bounds = Bounds(self._base, self._units, sought.sequences, self._plans.shapes)

    def run(self) -> SearchResult:
        """The search."""
        layouts, too_large = self._add_layouts()
        found: dict[ParallelDims, Candidate] = {}
        while self._queue and len(found) < self._best:
            node = heapq.heappop(self._queue)
            if node.dims in found:
                continue
            if node.time is not None and node.setting is not None:
                # With fewer micro-batches it fits. GPipe keeps the activations of all, so it may not with all of them.
                if self._short_number(node.setting) is None or self._fits(node.setting, self._sought.device):
                    found[node.dims] = self._candidate(node.setting, node.time)
            elif node.setting is None:
                self._add_settings(node)
            elif node.progress == _BOUNDED:
                self._add_fitting(node)
            elif node.progress == _FITS and self._short_number(node.setting) is not None:
                self._push(node, max(node.bound, self._estimated(node.setting)), _ESTIMATED, node.setting)
            else:
                self._settings += 1
                setting = self._with_actions(node.setting)
                time = StepClock(setting, self._sought.device, self._units).step()
                self._push(node, time.total, _TIMED, setting, time)
        return SearchResult(tuple(found.values()), layouts, too_large, self._settings)

    def fits_somewhere(self) -> bool:
        """Whether any layout fits with small micro-batches and the checkpointing that keeps least."""
        self._add_layouts()
        layouts, device = sorted(self._queue, key=lambda node: self._bounds.memory(node.dims)), self._sought.device
        for node in layouts:
            self._queue = []
            self._add_settings(node)
            smallest: dict[str, Setting] = {}
            for entry in self._queue:
                assert entry.setting is not None
                schedule = entry.setting.schedule.name if entry.setting.schedule else ""
                least = smallest.setdefault(schedule, entry.setting)
                if entry.setting.tokens.per_micro_batch < least.tokens.per_micro_batch:
                    smallest[schedule] = entry.setting
            for setting in smallest.values():
                *_, thrifty = self._modes(setting)
                if self._fits(self._shortened(thrifty), device):
                    return True
        return False

    def _add_layouts(self) -> tuple[int, int]:
        layouts = too_large = 0
        for place, dims in enumerate(valid_dims(self._sought.anatomy, self._world, axes=self._sought.axes)):
            if not self._plans.has(dims.pp):
                continue
            layouts += 1
            if self._bounds.memory(dims) > self._sought.device.memory:
                too_large += 1
                continue
            bound = self._bounds.time(dims)
            self._queue.append(_Node(bound, _LAYOUT, place, next(self._numbers), dims))
        heapq.heapify(self._queue)
        return layouts, too_large

    def _push(self, of: _Node, bound: float, progress: int, setting: Setting, time: StepTime | None = None) -> None:
        node = _Node(bound, progress, of.place, next(self._numbers), of.dims, setting, time)
        heapq.heappush(self._queue, node)

    def _add_settings(self, node: _Node) -> None:
        """Replace a layout by its schedules and numbers of micro-batches."""
        dims = node.dims
        ranks = -(-self._sought.sequences // (dims.dp_replicate * dims.dp_shard))
        for schedule, plan in self._plans.of(dims.pp):
            multiple = dims.pp if schedule is not None and schedule.multiple_of_ranks else 1
            for number in micro_batch_numbers(ranks, 1 if plan is None else len(plan), multiple):
                tokens = self._tokens(dims, -(-ranks // number), number)
                if tokens is None:
                    continue
                setting = replace(
                    self._base,
                    dims=dims,
                    tokens=tokens,
                    stages=plan,
                    schedule=schedule,
                    reshards=dims.pp == 1,
                    reshards_last=False,
                    compiles=self._base.compiles and not (schedule is not None and schedule.splits_backward),
                    checkpointing="none",
                )
                bound = StepClock(setting, self._sought.device, self._units).lower_bound()
                self._push(node, max(bound, node.bound), _BOUNDED, setting)

    def _tokens(self, dims: ParallelDims, sequences: int, number: int) -> Tokens | None:
        """Micro-batches of that many sequences; ``None`` if they are too long."""
        tokens = sequences * self._base.tokens.sequence
        if self._sought.most_tokens is not None and tokens > self._sought.most_tokens and sequences > 1:
            return None
        multiple = dims.tp * dims.cp
        padded = -(-tokens // multiple) * multiple
        return replace(self._base.tokens, per_micro_batch=padded, n_micro_batches=number)

    def _modes(self, setting: Setting) -> Iterator[Setting]:
        """The setting with each activation checkpointing that the engine allows with its schedule."""
        splits = setting.schedule is not None and setting.schedule.splits_backward
        for mode in self._sought.modes:
            if mode == "selective" and splits:
                continue
            if mode == "memory_budget" and not setting.compiles:
                continue
            if mode == "none" or self._base.trains:
                yield replace(setting, checkpointing=mode, every=None)

    def _add_fitting(self, node: _Node) -> None:
        """Choose the fastest checkpointing that fits."""
        assert node.setting is not None
        modes = list(self._modes(node.setting))
        if modes and modes[0].checkpointing == "none":
            # Recomputing nothing is fastest, and the entry's bound is that of this mode.
            if self._fits(self._shortened(modes[0]), self._sought.device):
                self._push(node, node.bound, _FITS, modes[0])
                return
            del modes[0]
        options = []
        for setting in modes:
            bound = StepClock(setting, self._sought.device, self._units).lower_bound()
            options.append((bound, len(options), setting))
        for bound, _, setting in sorted(options, key=lambda option: option[:2]):
            if self._fits(self._shortened(setting), self._sought.device):
                self._push(node, max(bound, node.bound), _FITS, setting)
                return

    def _with_actions(self, setting: Setting) -> Setting:
        if setting.schedule is None or setting.stages is None or setting.actions:
            return setting
        ranks, number = setting.dims.pp, setting.tokens.n_micro_batches
        if not setting.trains:
            return replace(setting, actions=forward_actions(setting.stages, ranks, number))
        return replace(setting, actions=self._plans.actions(setting.schedule, setting.stages, ranks, number))

    def _short_number(self, setting: Setting) -> int | None:
        """A number of micro-batches behind which the schedule repeats itself; ``None`` if the setting has not more."""
        if setting.schedule is None or setting.stages is None:
            return None
        number = ESTIMATED_FROM * len(setting.stages)  # a multiple of the ranks, as is half of it
        return number if setting.tokens.n_micro_batches > number else None

    def _shortened(self, setting: Setting) -> Setting:
        """The setting with its lists, or with those of fewer micro-batches that keep as many activations."""
        number = self._short_number(setting)
        return self._with_actions(setting if number is None else _with_number(setting, number))

    def _estimated(self, setting: Setting) -> float:
        """Seconds of a step with many micro-batches, from two with fewer."""
        number = self._short_number(setting)
        assert number is not None
        half, whole = (
            StepClock(self._with_actions(_with_number(setting, n)), self._sought.device, self._units).step().total
            for n in (number // 2, number)
        )
        return whole + (setting.tokens.n_micro_batches - number) * (whole - half) / (number - number // 2)

    def _candidate(self, setting: Setting, time: StepTime) -> Candidate:
        layout = write_layout(setting.dims, moe=setting.anatomy.has_experts)
        real = self._sought.sequences * self._base.tokens.sequence
        memory = whole_memory(setting, self._sought.device)
        return Candidate(layout, setting, time, real / time.total, memory)


def _with_number(setting: Setting, number: int) -> Setting:
    return replace(setting, tokens=replace(setting.tokens, n_micro_batches=number))


_TIMED, _ESTIMATED, _FITS, _BOUNDED, _LAYOUT = range(5)
"""Progress of an entry, the furthest first."""
