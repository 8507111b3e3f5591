"""Records that know where they come from, so that a later error can name the file and line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PlacedRecord(dict[str, Any]):
    """A record and its place. It compares and pickles as the dictionary that it is.

    Attributes:
        source: what stands before the number, such as ``train.jsonl:``; one text for all records of a source.
        number: line or number in the source, from 1.
    """

    __slots__ = ("number", "source")

    def __init__(self, record: Mapping[str, Any], source: str, number: int) -> None:
        super().__init__(record)
        self.source, self.number = source, number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.source, self.number)

    @property
    def place(self) -> str:
        """For messages: ``train.jsonl:3``, ``record 3``."""
        return f"{self.source}{self.number}"


def placed(record: Mapping[str, Any], index: int) -> PlacedRecord:
    """``record`` with its place: its own if it has one, else its number in the data set, ``index`` + 1."""
    return record if isinstance(record, PlacedRecord) else PlacedRecord(record, "record ", index + 1)
