"""Finds the best layouts of a number of devices: sizes of all axes, schedule, checkpointing, micro-batches.

All candidates process the same sequences per step. The search is best first: layouts wait in the order of a lower bound
of their time (``search_bounds``), first without recomputation, then with the least that may fit (``memory_bounds``).
Each schedule and number of micro-batches of a layout follows with its own bound, each mode of checkpointing with a
closer one, and what fits with its exact time. When exact times lead the queue, they are the best: nothing behind them
can be faster.

Lists of very many micro-batches are replayed only for what leads the queue. Before, a step of theirs is estimated: past
its beginning a schedule repeats itself, so further micro-batches add equal times, and no activations.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from archon_core.errors import ConfigError
from archon_core.layout.dims import ParallelDims
from archon_plan.devices import Device
from archon_plan.largest_ranks import largest_ranks
from archon_plan.layouts import write_layout
from archon_plan.mean_elements import MeanElements
from archon_plan.memory import rank_memory, whole_memory
from archon_plan.memory_bounds import MemoryBounds
from archon_plan.results import RankMemory, StepTime
from archon_plan.search_bounds import Bounds
from archon_plan.search_space import Option, SearchSpace, Sought
from archon_plan.setting import Checkpointing, Setting
from archon_plan.shared_cores import with_threads
from archon_plan.timing import StepClock
from archon_plan.unit_times import UnitTimes

ESTIMATED_FROM = 6
"""Micro-batches per stage of a pipeline from which a step is estimated first."""


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
    shared = _Shared(sought)
    return next((n for n in numbers if n <= most and _Search(sought, n, 1, fits, shared).fits_somewhere()), None)


class _Node(NamedTuple):
    """An entry of the queue. Entries compare by their first four attributes, of which the numbers are unique.

    Attributes:
        bound: seconds that the step takes at least.
        progress: entries that are further come first where bounds are equal.
        place: of the layout among all, which makes the order deterministic.
        number: of the entry.
        dims: the layout.
        option: a schedule and micro-batches of it; ``None`` if only the layout is chosen.
        setting: both, with a mode of checkpointing; ``None`` until that is chosen.
        time: of the setting; ``None`` until it is predicted.
    """

    bound: float
    progress: int
    place: int
    number: int
    dims: ParallelDims
    option: Option | None = None
    setting: Setting | None = None
    time: StepTime | None = None


class _Shared:
    """What searches on any number of devices have in common."""

    def __init__(self, sought: Sought) -> None:
        self.space = space = SearchSpace(sought)
        self.units = UnitTimes(sought.device)
        elements = MeanElements(sought.anatomy)
        self.memory = MemoryBounds(space.base, sought.device, elements)
        self.bounds = Bounds(space.base, self.units, space.micro_batches, space.plans.shapes, elements)


class _Search:
    def __init__(self, sought: Sought, world: int, best: int, fits: Fits, shared: _Shared | None = None) -> None:
        # ``shared`` may have times of other numbers of threads: such searches compare memory only.
        sought = replace(sought, device=with_threads(sought.device, world))
        self._sought, self._world, self._best, self._fits = sought, world, best, fits
        shared = shared or _Shared(sought)
        self._space, self._units = shared.space, shared.units
        self._bounds, self._memory = shared.bounds, shared.memory
        self._queue: list[_Node] = []
        self._numbers = iter(range(1 << 62))
        self._settings = 0

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
                self._add_options(node) if node.option is None else self._add_modes(node, node.option)
            elif node.progress == _BOUNDED:
                if self._fits_with_lists(node.setting):
                    self._push(node, node.bound, _FITS, node.setting)
            elif node.progress == _FITS and self._short_number(node.setting) is not None:
                self._push(node, max(node.bound, self._estimated(node.setting)), _ESTIMATED, node.setting)
            else:
                self._settings += 1
                setting = self._space.with_actions(node.setting)
                time = self._clock(setting).step()
                self._push(node, time.total, _TIMED, setting, time)
        return SearchResult(tuple(found.values()), layouts, too_large, self._settings)

    def fits_somewhere(self) -> bool:
        """Whether any layout fits with small micro-batches and the checkpointing that keeps least."""
        # Memory first: stages of pipelines on few devices, where nothing fits, are not worth computing.
        for dims in sorted(filter(self._memory.states_fit, self._space.sizes(self._world)), key=self._memory.states):
            # Micro-batches become smaller with their number, so the last of each schedule has the fewest tokens.
            smallest = {option.schedule: option for option in self._space.options(dims)}
            for option in smallest.values():
                *_, thrifty = self._space.allowed_modes(option.schedule)
                if self._may_fit(dims, option, thrifty) and self._fits_with_lists(
                    self._space.setting(dims, option, thrifty)
                ):
                    return True
        return False

    def _add_layouts(self) -> tuple[int, int]:
        layouts = too_large = 0
        for place, dims in enumerate(self._space.layouts(self._world)):
            layouts += 1
            if not self._memory.states_fit(dims):
                too_large += 1
                continue
            self._queue.append(_Node(self._bounds.quick_time(dims), _LAYOUT, place, next(self._numbers), dims))
        heapq.heapify(self._queue)
        return layouts, too_large

    def _add_options(self, node: _Node) -> None:
        """Replace a layout by itself with a closer bound, or by its schedules and numbers of micro-batches."""
        if node.progress == _LAYOUT:
            modes = self._possible_modes(node.dims)
            if modes:
                bound = min(self._bounds.time(node.dims, mode) for mode in modes)
                heapq.heappush(self._queue, node._replace(bound=max(bound, node.bound), progress=_POSSIBLE))
            return
        bounds: dict[tuple[int, int], float] = {}
        for option in self._space.options(node.dims):
            # Schedules whose ranks have the same shapes have the same bounds.
            alike = option.place, option.tokens.n_micro_batches
            if alike not in bounds:
                times = (
                    self._bounds.time_of(node.dims, option.place, option.tokens.n_micro_batches, mode)
                    for mode in self._space.allowed_modes(option.schedule)
                    if self._may_fit(node.dims, option, mode)
                )
                bounds[alike] = max(min(times, default=math.inf), node.bound)
            if bounds[alike] < math.inf:
                entry = _Node(bounds[alike], _LISTED, node.place, next(self._numbers), node.dims, option)
                heapq.heappush(self._queue, entry)

    def _possible_modes(self, dims: ParallelDims) -> list[Checkpointing]:
        """The modes with which the smallest micro-batches may fit."""
        tokens = self._space.micro_batches.padded_tokens(dims, 1)
        # Schedules that split backward passes run blocks that are not compiled.
        compiles = {self._space.base.compiles, self._space.base.compiles and dims.pp == 1}
        modes = self._sought.modes if self._space.base.trains else ("none",)
        return [
            mode for mode in modes if any(self._memory.fits(dims, mode, tokens, compiles=each) for each in compiles)
        ]

    def _push(self, of: _Node, bound: float, progress: int, setting: Setting, time: StepTime | None = None) -> None:
        heapq.heappush(self._queue, _Node(bound, progress, of.place, of.number, of.dims, of.option, setting, time))

    def _clock(self, setting: Setting) -> StepClock:
        return StepClock(setting, self._sought.device, self._units)

    def _may_fit(self, dims: ParallelDims, option: Option, mode: Checkpointing) -> bool:
        return self._memory.fits(dims, mode, option.tokens.per_micro_batch, compiles=option.compiles)

    def _add_modes(self, node: _Node, option: Option) -> None:
        """Replace an option by its modes of checkpointing that may fit."""
        for mode in self._space.allowed_modes(option.schedule):
            if not self._may_fit(node.dims, option, mode):
                continue
            setting = self._space.setting(node.dims, option, mode)
            bound, number = max(self._clock(setting).lower_bound(), node.bound), next(self._numbers)
            heapq.heappush(self._queue, _Node(bound, _BOUNDED, node.place, number, node.dims, option, setting))

    def _short_number(self, setting: Setting) -> int | None:
        """A number of micro-batches behind which the schedule repeats itself; ``None`` if the setting has not more."""
        if setting.schedule is None or setting.stages is None:
            return None
        number = ESTIMATED_FROM * len(setting.stages)  # a multiple of the ranks, as is half of it
        return number if setting.tokens.n_micro_batches > number else None

    def _fits_with_lists(self, setting: Setting) -> bool:
        device = self._sought.device
        if setting.schedule is not None and setting.stages is not None:
            # No schedule keeps fewer activations of more micro-batches, and lists of few are quickly made.
            few = len(setting.stages)
            if setting.tokens.n_micro_batches > few and not self._fits(
                self._space.with_actions(_with_number(setting, few)), device
            ):
                return False
        return self._fits(self._shortened(setting), device)

    def _shortened(self, setting: Setting) -> Setting:
        """The setting with its lists, or with those of fewer micro-batches that keep as many activations."""
        number = self._short_number(setting)
        return self._space.with_actions(setting if number is None else _with_number(setting, number))

    def _estimated(self, setting: Setting) -> float:
        """Seconds of a step with many micro-batches, from two with fewer."""
        number = self._short_number(setting)
        assert number is not None
        half, whole = (
            self._clock(self._space.with_actions(_with_number(setting, n))).step().total for n in (number // 2, number)
        )
        return whole + (setting.tokens.n_micro_batches - number) * (whole - half) / (number - number // 2)

    def _candidate(self, setting: Setting, time: StepTime) -> Candidate:
        layout = write_layout(setting.dims, moe=setting.anatomy.has_experts)
        real = self._sought.sequences * self._space.base.tokens.sequence
        memory = whole_memory(setting, self._sought.device)
        return Candidate(layout, setting, time, real / time.total, memory)


def _with_number(setting: Setting, number: int) -> Setting:
    return replace(setting, tokens=replace(setting.tokens, n_micro_batches=number))


_TIMED, _ESTIMATED, _FITS, _BOUNDED, _LISTED, _POSSIBLE, _LAYOUT = range(7)
"""Progress of an entry, the furthest first."""
