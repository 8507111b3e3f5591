"""The data set ``verifiers``: the rows of an environment of verifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError
from archon_tasks.environments.verifiers_adapter import ROW
from archon_tasks.environments.verifiers_loading import load_verifiers

OPTION = "data.verifiers"


@dataclass(frozen=True)
class VerifiersRows:
    """Rows of verifiers as records.

    Attributes:
        rows: of verifiers' data set.
        prompt_key: field for the prompt.
        answer_key: field for the answer.
        name: of the environment.
    """

    rows: Any
    prompt_key: str
    answer_key: str
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = dict(self.rows[index])
        return {self.prompt_key: row["prompt"], self.answer_key: str(row.get("answer") or ""), ROW: row}

    def where(self, index: int) -> str:
        """The number of a row, for messages."""
        return f"row {index} of the environment {self.name!r}"


def verifiers_dataset(config: Any, *, split: Literal["train", "validation"], seed: int) -> Dataset:
    """The training rows, or ``data.validation_size`` of the evaluation rows.

    Raises:
        ConfigError: verifiers or the environment is missing, or it has too few evaluation rows.
    """
    options = config.verifiers
    environment = load_verifiers(options.environment, options.arguments, option=f"{OPTION}.environment")
    if not config.answer_key or "." in config.prompt_key + config.answer_key:
        raise ConfigError(
            f"data.prompt_key, data.answer_key: found {config.prompt_key!r} and {config.answer_key!r}; allowed are "
            "plain names for the fields that the data set 'verifiers' writes; leave both out"
        )
    if split == "train":
        rows = environment.get_dataset()
    else:
        rows = _evaluation_rows(environment, config.validation_size, options.environment)
    return VerifiersRows(rows, config.prompt_key, config.answer_key, options.environment)


def _evaluation_rows(environment: Any, wanted: int, name: str) -> Any:
    if not wanted:
        return []
    environment.build_eval_dataset()
    rows = environment.eval_dataset
    found = 0 if rows is None else len(rows)
    if found < wanted:  # verifiers itself would evaluate on training rows
        raise ConfigError(
            f"data.validation_size: found {wanted}; the environment {name!r} has {found} evaluation rows; lower it"
        )
    return rows.select(range(wanted))
