"""Training state in torch's distributed checkpoint format: weights and optimizer state under global parameter names.

Names and values do not depend on how tensors are sharded, so a run can continue on another layout. Beside the tensors
lie counters and the model's configuration, so that the folder can be understood without the run it came from.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from archon_core.contracts.decisions import Decision
from archon_core.errors import ArchonError, DamagedError, WeightsError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.dcp_metadata import read_metadata
from archon_engine.checkpoint.dcp_storage import (
    METADATA,
    DescribedReader,
    TensorReader,
    TensorWriter,
)
from archon_engine.checkpoint.parts import (
    BoxesPlanner,
    Part,
    PartsPlanner,
    part_of,
)
from archon_engine.checkpoint.seal import SealedFile, check_file, read_seal

WEIGHT = "weights."
_STATE = "optimizer."
COUNTERS = "counters.json"
MODEL = "model.json"


def describe_model(hf_config: Any, *, critic: bool, name: str) -> dict[str, Any]:
    """What a training state says of its model.

    Args:
        hf_config: the ``transformers`` configuration.
        critic: the head is a value head.
        name: of the model's spec.
    """
    return {"hf_config": json.loads(hf_config.to_json_string(use_diff=False)), "critic": critic, "model": name}


@dataclass(frozen=True)
class TrainingState:
    """What is saved of an engine.

    Attributes:
        parts: this rank's, of weights and optimizer state.
        counters: numbers that belong to them.
        model: see ``describe_model``.
    """

    parts: Sequence[Part]
    counters: Mapping[str, int]
    model: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Mapping[str, Any]],
        counters: Mapping[str, int],
        model: Mapping[str, Any],
    ) -> TrainingState:
        """Describe what is in memory, without copying it."""
        tensors = {WEIGHT + name: parameter for name, parameter in parameters.items()}
        for name, state in optimizer_state.items():
            tensors.update({f"{_STATE}{name}.{key}": value for key, value in state.items()})
        return cls([part_of(name, tensor) for name, tensor in tensors.items()], dict(counters), dict(model))

    def write(self, folder: Path, ranks: Ranks) -> None:
        """Write into ``folder``, which is created. Collective over ``ranks`` alone, so that a separate group can write
        while training goes on.

        Raises:
            WeightsError: on every rank, a part could not be written.
        """
        with failing_together(ranks):
            folder.mkdir(parents=True, exist_ok=True)
            if ranks.is_first:
                (folder / COUNTERS).write_text(json.dumps(self.counters) + "\n", encoding="utf-8")
                (folder / MODEL).write_text(json.dumps(self.model, indent=2) + "\n", encoding="utf-8")
        with _in_our_terms(f"training state {folder}: it could not be written; see to the disk's space and rights"):
            dcp.save(
                {},
                storage_writer=TensorWriter(folder, (COUNTERS, MODEL)),
                planner=PartsPlanner(self.parts),
                process_group=ranks.group,
                no_dist=ranks.size == 1,
            )


@dataclass(frozen=True)
class SavedState:
    """A folder that holds a training state, with its small files read and checked.

    Attributes:
        folder: where it is.
        metadata: torch's: what is saved there under which name.
        counters: numbers that were saved with it.
        model: see ``TrainingState``; empty when an earlier version wrote the folder.
        seal: checksums; ``None`` when an earlier version wrote the folder.
    """

    folder: Path
    metadata: Metadata
    counters: Mapping[str, int]
    model: Mapping[str, Any]
    seal: Mapping[str, SealedFile] | None

    @classmethod
    def open(cls, folder: Path) -> SavedState:
        """Read what the folder says of itself.

        Raises:
            WeightsError: there is no training state, or a damaged one.
        """
        if not (folder / METADATA).is_file() or not (folder / COUNTERS).is_file():
            raise DamagedError(
                f"training state {folder}: found no complete one there; name a folder written by a dcp save"
            )
        seal = read_seal(folder)
        for name in (METADATA, COUNTERS, MODEL):
            if seal is not None and name in seal:
                check_file(folder / name, seal[name])
        try:
            counters = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
            model = json.loads((folder / MODEL).read_text(encoding="utf-8")) if (folder / MODEL).is_file() else {}
        except (OSError, ValueError) as error:
            raise DamagedError(
                f"training state {folder}: its description is damaged ({error!r}); copy it anew"
            ) from error
        return cls(folder, read_metadata(folder / METADATA), counters, model, seal)

    @property
    def weights(self) -> dict[str, Any]:
        """Parameter name -> torch's metadata of the stored tensor."""
        saved = self.metadata.state_dict_metadata
        return {name.removeprefix(WEIGHT): entry for name, entry in saved.items() if name.startswith(WEIGHT)}

    def read(self, tensors: dict[str, Any], ranks: Ranks) -> None:
        """Fill tensors, DTensors among them, by their names in the checkpoint. Collective; checks all files.

        Raises:
            WeightsError: on every rank, a file is damaged.
        """
        if self.seal is None:
            reader = DescribedReader(self.folder, self.metadata)
        else:
            reader = TensorReader(self.folder, self.metadata, self.seal, ranks)
        with _in_our_terms(f"training state {self.folder}: its files are damaged or incomplete; copy it anew"):
            dcp.load(
                tensors,
                storage_reader=reader,
                planner=BoxesPlanner(),
                process_group=ranks.group,
                no_dist=ranks.size == 1,
            )


def load_training_state(
    folder: Path, parameters: Mapping[str, Tensor], whole: Collection[str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int], list[Decision]]:
    """Read weights into ``parameters`` in place; return the optimizer state by parameter name, the counters, and what
    was done otherwise than usual.

    Collective.

    Args:
        folder: written by ``TrainingState.write``.
        parameters: those that this process holds a part of.
        whole: names of all parameters of the model, on all processes; ``None`` where all are here.

    Raises:
        WeightsError: on every rank, the folder holds no training state, a damaged one, or one whose names, shapes and
            types are not those of ``parameters``.
    """
    ranks = Ranks.of_process_group()
    with failing_together(ranks):
        saved = SavedState.open(folder)
        _check_fit(saved, parameters, parameters.keys() if whole is None else whole)
    tensors: dict[str, Any] = {WEIGHT + name: parameter.detach() for name, parameter in parameters.items()}
    optimizer_state: dict[str, dict[str, Tensor]] = {}
    for key, metadata in saved.metadata.state_dict_metadata.items():
        if not key.startswith(_STATE):
            continue
        name, _, entry = key.removeprefix(_STATE).rpartition(".")
        if name not in parameters:
            continue
        parameter = parameters[name].detach()
        like = torch.empty_like(parameter) if metadata.size == parameter.shape else torch.empty(metadata.size)
        tensors[key] = like.to(metadata.properties.dtype)
        optimizer_state.setdefault(name, {})[entry] = tensors[key]
    saved.read(tensors, ranks)
    decisions = []
    if saved.seal is None:
        reason = "it has no checksums: an earlier version of archon-core wrote it"
        decisions.append(Decision("trainer.resume", f"{folder}, checked", "not checked for damage", reason))
    return optimizer_state, dict(saved.counters), decisions


@contextmanager
def _in_our_terms(message: str) -> Iterator[None]:
    """Around torch's saving and loading, which tells all ranks when one fails.

    Its error is no ``Exception``. It warns that one process without a process group is one process.
    """
    # For good: filters belong to the process, and another thread may be changing them.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    try:
        yield
    except CheckpointException as error:
        failures = {rank: cause for rank, (cause, _) in sorted(error.failures.items())}
        ours = next((cause for cause in failures.values() if isinstance(cause, ArchonError)), None)
        if ours is not None:
            raise type(ours)(str(ours)) from error
        causes = "; ".join(f"rank {rank}: {cause!r}" for rank, cause in failures.items())
        raise WeightsError(f"{message} ({causes})") from error


def _check_fit(saved: SavedState, parameters: Mapping[str, Tensor], whole: Collection[str]) -> None:
    found = {name: (tuple(entry.size), entry.properties.dtype) for name, entry in saved.weights.items()}
    wanted = {name: (tuple(parameter.shape), parameter.dtype) for name, parameter in parameters.items()}
    problems = [f"missing {name} {wanted[name][0]}" for name in wanted.keys() - found.keys()]
    problems += [f"unexpected {name} {found[name][0]}" for name in found.keys() - set(whole)]
    shared = wanted.keys() & found.keys()
    problems += [
        f"{name}: found {found[name][0]}, the model has {wanted[name][0]}"
        for name in shared
        if found[name][0] != wanted[name][0]
    ]
    if problems:
        raise WeightsError(
            f"training state {saved.folder} does not fit the model:\n  "
            + "\n  ".join(sorted(problems))
            + "\nresume with the model configuration that the run was started with"
        )
    types = sorted(
        {(str(found[name][1]), str(wanted[name][1])) for name in shared if found[name][1] != wanted[name][1]}
    )
    if types:
        pairs = ", ".join(f"found {was}, the model has {now}" for was, now in types)
        raise WeightsError(
            f"training state {saved.folder}: its weights are of another type: {pairs}; resume with the dtype and "
            "archon.master_dtype that the run was started with, or begin a new run from its export"
        )
