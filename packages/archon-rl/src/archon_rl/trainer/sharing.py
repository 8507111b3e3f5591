"""Division of work among data ranks: every rank holds the whole batch, computes its share, and gets the whole result.

Completions, rewards, advantages and mini-batches are whole on every rank, so statistics such as the mean reward of a
group, and draws such as the mini-batches, are exact and equal for every layout. Only slow work is divided: generation,
rewards, and passes of the model.

Plans are pure functions of values that all ranks hold; ``SharedEngine`` and ``map_over_ranks`` carry them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StagedState, StepStats, TrainEngine, TrainsAdapters
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.errors import WeightsError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_engine.data.packing import plan_micro_batches
from archon_engine.data.tree_micro_batch import tree_of
from archon_engine.data.tree_packing import plan_tree_micro_batches
from archon_train.run.recordings import Recordings

T = TypeVar("T")

ONE_RANK = DataRanks()
"""The data ranks of a single process."""


def deal_round_robin(n_items: int, n_ranks: int) -> list[list[int]]:
    """Round-robin assignment of items 0 to ``n_items`` - 1 to ranks; counts differ by at most one.

    >>> deal_round_robin(5, 2)
    [[0, 2, 4], [1, 3]]
    """
    return [list(range(rank, n_items, n_ranks)) for rank in range(n_ranks)]


def plan_shares(lengths: Sequence[int], n_ranks: int, *, granularity: int = 1) -> list[list[int]]:
    """Assignment of whole sequences to data ranks, with about equally many tokens per rank.

    Args:
        lengths: tokens per sequence.
        n_ranks: number of shares; some are empty if there are fewer sequences.
        granularity: number of consecutive sequences to keep together.

    Returns:
        Indices into ``lengths`` per rank, ascending.

    Raises:
        DataError: granularity does not divide the number of sequences.
    """
    return plan_micro_batches(lengths, n_mbs=n_ranks, granularity=granularity)


def plan_tree_shares(batch: Batch, n_ranks: int, *, granularity: int = 1) -> list[list[int]]:
    """``plan_shares`` for engines that compute shared prefixes once: with about equally many tokens of the prefix tree,
    and sequences with common prefixes on the same rank.

    Raises:
        DataError: granularity does not divide the number of sequences.
    """
    tree = tree_of(batch)
    if not tree.shares:
        return plan_shares(batch.lengths, n_ranks, granularity=granularity)
    return plan_tree_micro_batches(tree, batch.lengths, n_mbs=n_ranks, granularity=granularity)


def map_over_ranks(n_items: int, work: Callable[[list[int]], Sequence[T]], data_ranks: DataRanks) -> list[T]:
    """Results of ``work`` for items 0 to ``n_items`` - 1, divided among the data ranks. Collective.

    Args:
        work: maps item indices to results, which must be small and picklable. Called exactly once on every rank, with
            an empty list if the rank has no items, so it may be collective.
    """
    places = deal_round_robin(n_items, data_ranks.size)
    results = data_ranks.gather(list(work(places[data_ranks.rank])))
    return restore_order(results, places)


def restore_order(parts: Sequence[Sequence[T]], places: Sequence[Sequence[int]]) -> list[T]:
    """Merge ``parts`` into one list, with ``parts[i][j]`` at index ``places[i][j]``."""
    by_place = {
        place: value
        for part, members in zip(parts, places, strict=True)
        for place, value in zip(members, part, strict=True)
    }
    return [by_place[place] for place in range(len(by_place))]


@dataclass(frozen=True)
class SharedEngine:
    """An engine for whole batches: divides each batch among the data ranks and returns results for the whole batch.

    All processes of the engine call the same methods with the same batches.

    Attributes:
        engine: takes the share of each rank.
        granularity: its ``mb_spec.granularity``: number of consecutive sequences to keep together.
        recordings: collects what the engine records of its steps.
        offloads: keep the engine in host memory except while it is used; ``build_role_engines`` offloads it first.
        shares_prefixes: its ``enable_tree_training``: prefixes are computed once per rank.
    """

    engine: TrainEngine
    granularity: int = 1
    recordings: Recordings = field(default_factory=Recordings)
    offloads: bool = False
    shares_prefixes: bool = False

    @property
    def version(self) -> int:
        """The version of the engine's weights."""
        return self.engine.version

    @property
    def data_ranks(self) -> DataRanks:
        """The data ranks that divide the work."""
        return self.engine.data_ranks

    @property
    def decisions(self) -> Sequence[Decision]:
        """Settings that the engine changes."""
        return self.engine.decisions

    @contextmanager
    def onloaded(self) -> Iterator[TrainEngine]:
        """The engine on its device; back in host memory after the block if it ``offloads``."""
        if not self.offloads:
            yield self.engine
            return
        self.engine.onload()
        try:
            yield self.engine
        finally:
            self.engine.offload()

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on the whole ``batch``."""
        with self.onloaded() as engine:
            stats = engine.train_batch(self._share(batch), loss)
        self.recordings.take(stats.recordings)
        return stats

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on the whole ``batch``."""
        with self.onloaded() as engine:
            return engine.eval_batch(self._share(batch), loss)

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] of the whole ``batch``, on every rank; on the CPU when they come from several."""
        with self.onloaded() as engine:
            outputs = engine.forward_batch(self._share(batch), request)
        if self.data_ranks.size == 1:
            return outputs
        # A rank without sequences has no outputs, so their dtype is unknown there.
        parts = self.data_ranks.gather({name: value.cpu() for name, value in outputs.items()})
        plan = self._plan(batch)
        return {
            name: _join(batch, [(part[name], places) for part, places in zip(parts, plan, strict=True) if places])
            for name in request.names
        }

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Write a checkpoint folder."""
        with self.onloaded() as engine:
            engine.save(path, format)

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Read a folder that ``save`` wrote."""
        with self.onloaded() as engine:
            engine.load(path, format)

    def stage(self) -> StagedState:
        """A copy of the training state, in host memory."""
        with self.onloaded() as engine:
            return engine.stage()

    def _share(self, batch: Batch) -> Batch:
        if self.data_ranks.size == 1:
            return batch
        return batch.select(self._plan(batch)[self.data_ranks.rank])

    def _plan(self, batch: Batch) -> list[list[int]]:
        if self.shares_prefixes:
            return plan_tree_shares(batch, self.data_ranks.size, granularity=self.granularity)
        return plan_shares(batch.lengths, self.data_ranks.size, granularity=self.granularity)


@dataclass(frozen=True)
class WithoutAdapters:
    """Forward passes of a trained model with its adapters switched off: the reference of the KL terms.

    Attributes:
        actor: the trained model.
    """

    actor: SharedEngine

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] of the whole ``batch``; see ``SharedEngine.forward_batch``."""
        engine = self.actor.engine
        assert isinstance(engine, TrainsAdapters), "an engine with adapters can switch them off"
        with engine.without_adapters():
            return self.actor.forward_batch(batch, request)


def _join(batch: Batch, parts: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
    """Per-token values [T, ...] of ``batch`` from parts, each with the indices of its sequences."""
    rows = [value.split([batch.lengths[place] for place in places]) for value, places in parts]
    return torch.cat(restore_order(rows, [places for _, places in parts]))


@contextmanager
def publish_collectively(ranks: Ranks, publication: AbstractContextManager[Path]) -> Iterator[Path]:
    """A folder that all ranks write: the first rank creates and publishes it, and all wait for the publication.

    If the block raises, it must raise on all ranks.

    Args:
        publication: yields the folder to write into, as ``archon_engine.checkpoint.publication.publish_folder`` does;
            only the first rank enters it.

    Raises:
        WeightsError: on every rank, if the first could not create or publish the folder.
    """
    with ExitStack() as stack:
        folder = Path()
        with failing_together(ranks), _disk_errors():
            if ranks.is_first:
                folder = stack.enter_context(publication)
        # The yield is inside the stack, so that an error in the block aborts the publication.
        yield ranks.broadcast(folder)
        with failing_together(ranks), _disk_errors():
            stack.pop_all().close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"checkpoint: cannot write it ({error}); check disk space and permissions") from error
