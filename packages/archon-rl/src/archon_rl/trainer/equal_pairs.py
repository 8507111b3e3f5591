"""Leaves out records whose two answers are equal (``data.equal_pairs: drop``)."""

from __future__ import annotations

from archon_core.contracts.data import Dataset
from archon_core.contracts.decisions import Decision
from archon_core.errors import DataError
from archon_core.ranks.failing_together import failing_together
from archon_rl.datasets.records import SubsetDataset, place_of
from archon_rl.fields import with_location
from archon_rl.preference_fields import PreferenceFields
from archon_train.run.context import RunContext

NAMED = 5
"""Number of records that the decision names."""


def without_equal_pairs(run: RunContext, what: str, dataset: Dataset, fields: PreferenceFields) -> Dataset:
    """The records that express a preference; a decision names the others. Collective.

    Args:
        what: kind of records, for messages.

    Raises:
        DataError: on every rank, a field is missing or invalid, or no record expresses a preference.
    """
    if run.config.data.equal_pairs != "drop" or not len(dataset):
        return dataset
    equal: list[int] = []
    with failing_together(run.ranks):
        if run.ranks.is_first:
            equal = [index for index in range(len(dataset)) if _is_equal(dataset, index, fields)]
    equal = run.ranks.broadcast(equal)
    if not equal:
        return dataset
    if len(equal) == len(dataset):
        raise DataError(
            f"{place_of(dataset, 0)}: found equal answers in all {len(dataset)} {what} records; set data.chosen_key "
            "and data.rejected_key to fields that differ"
        )
    names = ", ".join(place_of(dataset, index) for index in equal[:NAMED])
    names += f" and {len(equal) - NAMED} more" if len(equal) > NAMED else ""
    effective = f"{len(equal)} of {len(dataset)} {what} records left out: {names}"
    run.record([Decision("data.equal_pairs", "drop", effective, "their answers are equal, so they express nothing")])
    gone = set(equal)
    return SubsetDataset(dataset, [index for index in range(len(dataset)) if index not in gone])


def _is_equal(dataset: Dataset, index: int, fields: PreferenceFields) -> bool:
    with with_location(place_of(dataset, index)):
        return fields.are_equal(dataset[index])
