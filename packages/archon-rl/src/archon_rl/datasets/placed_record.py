"""Records with their source location, for errors that name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.contracts.data import Dataset
from archon_rl.datasets.records import place_of


class PlacedRecord(dict[str, Any]):
    """A record with its location. Compares equal to the plain dictionary; pickling keeps the location.

    Attributes:
        place: location for messages, such as ``train.jsonl:3``.
    """

    __slots__ = ("place",)

    def __init__(self, record: Mapping[str, Any], place: str) -> None:
        super().__init__(record)
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.place)


def read_placed(dataset: Dataset, index: int) -> PlacedRecord:
    """Record ``index`` of a data set, with its location."""
    return PlacedRecord(dataset[index], place_of(dataset, index))
