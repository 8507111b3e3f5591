"""Work that the ranks share: every rank knows the whole batch, does its share, and knows the whole result.

Because a step's completions, rewards, advantages and mini-batches are whole on every rank, what is computed from all
of them, such as the mean reward of a group or the draw of the mini-batches, is exact and the same for every layout.
Only what takes long is shared: generation, rewards, and the passes of the model.

The plans are pure functions of what all ranks know; ``SharedEngine`` and ``in_shares`` are their effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats, TrainEngine
from archon_core.contracts.loss import Loss, OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.errors import WeightsError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_engine.data.packing import plan_micro_batches
from archon_train.run.recordings import Recordings

T = TypeVar("T")

ONE_RANK = DataRanks()
"""The data ranks of a single process."""


def deal(n_items: int, n_ranks: int) -> list[list[int]]:
    """Places 0 to ``n_items`` - 1, dealt one after the other: ranks get equally many, or one more.

    >>> deal(5, 2)
    [[0, 2, 4], [1, 3]]
    """
    return [list(range(rank, n_items, n_ranks)) for rank in range(n_ranks)]


def plan_shares(lengths: Sequence[int], n_ranks: int, *, granularity: int = 1) -> list[list[int]]:
    """Which sequences each data rank works on: whole ones, with about equally many tokens per rank.

    Args:
        lengths: tokens per sequence.
        n_ranks: shares to make. Some are empty when there are fewer sequences.
        granularity: consecutive sequences that stay together.

    Returns:
        Indices into ``lengths`` per rank, ascending.

    Raises:
        DataError: granularity does not divide the number of sequences.
    """
    return plan_micro_batches(lengths, n_mbs=n_ranks, granularity=granularity)


def in_shares(n_items: int, work: Callable[[list[int]], Sequence[T]], data_ranks: DataRanks) -> list[T]:
    """Results of ``work`` for items 0 to ``n_items`` - 1, of which each data rank does some.

    Args:
        work: from the places of some items to their results, which must be small and can be pickled. It is called
            once on every rank, with an empty list where there is nothing to do: it may be collective.
    """
    places = deal(n_items, data_ranks.size)
    results = data_ranks.gather(list(work(places[data_ranks.rank])))
    return restore(results, places)


def restore(parts: Sequence[Sequence[T]], places: Sequence[Sequence[int]]) -> list[T]:
    """Put what was taken apart back in order: ``parts[i][j]`` belongs at ``places[i][j]``."""
    by_place = {
        place: value
        for part, members in zip(parts, places, strict=True)
        for place, value in zip(members, part, strict=True)
    }
    return [by_place[place] for place in range(len(by_place))]


@dataclass(frozen=True)
class SharedEngine:
    """An engine that takes whole batches: each data rank works on its share, and results are those of the whole.

    All of the engine's processes call the same methods with the same batches.

    Attributes:
        engine: takes shares.
        granularity: its ``mb_spec.granularity``; sequences that stay together in micro-batches do so here.
        recordings: takes what the engine records of its steps.
    """

    engine: TrainEngine
    granularity: int = 1
    recordings: Recordings = field(default_factory=Recordings)

    @property
    def version(self) -> int:
        """That of the engine's weights."""
        return self.engine.version

    @property
    def data_ranks(self) -> DataRanks:
        """Who shares the work."""
        return self.engine.data_ranks

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on the whole ``batch``."""
        stats = self.engine.train_batch(self._share(batch), loss)
        self.recordings.take(stats.recordings)
        return stats

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on the whole ``batch``."""
        return self.engine.eval_batch(self._share(batch), loss)

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] of the whole ``batch``, on every rank; on the CPU when they come from several."""
        if self.data_ranks.size == 1:
            return self.engine.forward_batch(batch, request)
        outputs = self.engine.forward_batch(self._share(batch), request)
        # A rank without sequences has nothing to say, not even in which type.
        parts = self.data_ranks.gather({name: value.cpu() for name, value in outputs.items()})
        plan = self._plan(batch)
        return {
            name: _join(batch, [(part[name], places) for part, places in zip(parts, plan, strict=True) if places])
            for name in request.names
        }

    def _share(self, batch: Batch) -> Batch:
        if self.data_ranks.size == 1:
            return batch
        return batch.select(self._plan(batch)[self.data_ranks.rank])

    def _plan(self, batch: Batch) -> list[list[int]]:
        return plan_shares(batch.lengths, self.data_ranks.size, granularity=self.granularity)


def _join(batch: Batch, parts: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
    """Per-token values [T, ...] of ``batch`` from those of the sequences at some places."""
    rows = [value.split([batch.lengths[place] for place in places]) for value, places in parts]
    return torch.cat(restore(rows, [places for _, places in parts]))


@contextmanager
def written_together(ranks: Ranks, publication: AbstractContextManager[Path]) -> Iterator[Path]:
    """A folder that all ranks write: the first rank opens and publishes it, and none goes on before it is there.

    What goes wrong inside the block must go wrong on all ranks.

    Args:
        publication: gives the folder to write into, as ``archon_engine.checkpoint.publication.publish_folder`` does;
            only the first rank enters.

    Raises:
        WeightsError: on every rank, the first could not open or publish the folder.
    """
    with ExitStack() as stack:
        folder = Path()
        with failing_together(ranks), _disk_errors():
            if ranks.is_first:
                folder = stack.enter_context(publication)
        # The block ends inside the stack, so that what it raises reaches the publication.
        yield ranks.broadcast(folder)
        with failing_together(ranks), _disk_errors():
            stack.pop_all().close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"checkpoint: it could not be written ({error}); see to the disk's space and rights"
        ) from error
