"""The requests of the actor's ranks to the ranks of a separated role, and the tensors that go with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest

INPUT_IDS = "input_ids"

INHERITED = ("path", "model_config", "init_from_scratch", "is_critic")
"""Options of a model's section that the trainer completes: with the actor's weights, or from the tokenizer."""


@dataclass(frozen=True)
class BuildModel:
    """Build the role's engine. The answer has the engine's decisions.

    Attributes:
        role: the role.
        options: the values of ``INHERITED``.
        total_steps: optimizer steps of the run; ``None`` for a frozen model.
    """

    role: str
    options: Mapping[str, Any]
    total_steps: int | None


@dataclass(frozen=True)
class ForwardPass:
    """Per-token outputs of a batch; the answer has them as tensors.

    Attributes:
        role: the role.
        lengths: tokens per sequence.
        request: the outputs.
    """

    role: str
    lengths: tuple[int, ...]
    request: OutputRequest


@dataclass(frozen=True)
class TrainingSteps:
    """One optimizer step per trained mini-batch of a batch, with the objective of the role; the answer is a list of
    their ``StepStats``.

    Attributes:
        role: the role.
        lengths: tokens per sequence.
        n_minibatches: number of mini-batches.
        seed: of the split.
    """

    role: str
    lengths: tuple[int, ...]
    n_minibatches: int
    seed: int


@dataclass(frozen=True)
class BeginProfile:
    """Profile what follows; the answer is ``None``.

    Attributes:
        step: number of the training step, from 1.
    """

    step: int


@dataclass(frozen=True)
class EndProfile:
    """Write the profile that ``BeginProfile`` started; the answer is ``None``."""


@dataclass(frozen=True)
class SaveModel:
    """Write the model to a folder; the answer is ``None``.

    Attributes:
        role: the role.
        path: the folder.
        format: as of ``TrainEngine.save``.
    """

    role: str
    path: Path
    format: Literal["hf", "dcp"]


@dataclass(frozen=True)
class LoadModel:
    """Read the folder that ``SaveModel`` wrote; the answer has the engine's
    decisions.

    Attributes:
        role: the role.
        path: the folder, ``ROLE/dcp`` in a checkpoint.
        format: as of ``TrainEngine.load``.
    """

    role: str
    path: Path
    format: Literal["hf", "dcp"]


@dataclass(frozen=True)
class StageModel:
    """Copy the training state; the answer is ``None``.

    Attributes:
        role: the role.
    """

    role: str


@dataclass(frozen=True)
class WriteStaged:
    """Write the copy of ``StageModel``, over the background link; the answer is ``None``.

    Attributes:
        role: the role.
        path: the folder.
    """

    role: str
    path: Path


def tensors_of(batch: Batch, fields: Collection[str]) -> dict[str, Tensor]:
    """The token ids of a batch, and those of its token fields that are in ``fields``."""
    chosen = {name: value for name, value in batch.token_fields.items() if name in fields}
    return {INPUT_IDS: batch.input_ids, **chosen}


def batch_of(lengths: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Batch:
    """The batch that was sent with ``tensors_of``."""
    fields = {name: value for name, value in tensors.items() if name != INPUT_IDS}
    return Batch(tensors[INPUT_IDS], lengths, fields)
