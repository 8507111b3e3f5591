"""Training state in torch's distributed checkpoint format: weights and optimizer state under global parameter names.

Names and values do not depend on the sharding, so a run can continue on another layout. Counters and the model's
configuration lie beside the tensors, so the folder can be read without the run that wrote it.
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


def describe_model(hf_config: Any, *, critic: bool, name: str, adapter: str | None = None) -> dict[str, Any]:
    """The description of the model in a training state.

    Args:
        hf_config: the ``transformers`` configuration.
        critic: whether the head is a value head.
        name: name of the model's spec.
        adapter: the kind of adapter that the state holds without the weights of the model; ``None`` for a whole model.
    """
    described = {"hf_config": json.loads(hf_config.to_json_string(use_diff=False)), "critic": critic, "model": name}
    return described if adapter is None else {**described, "adapter": adapter}


@dataclass(frozen=True)
class TrainingState:
    """The state of an engine to save.

    Attributes:
        parts: this rank's parts of weights and optimizer state.
        counters: counters, such as the version of the weights.
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
        """Describe weights and optimizer state in memory, without copying them."""
        tensors = {WEIGHT + name: parameter for name, parameter in parameters.items()}
        for name, state in optimizer_state.items():
            tensors.update({f"{_STATE}{name}.{key}": value for key, value in state.items()})
        return cls([part_of(name, tensor) for name, tensor in tensors.items()], dict(counters), dict(model))

    def write(self, folder: Path, ranks: Ranks) -> None:
        """Write into ``folder``, which is created. Collective over ``ranks`` only, so a separate group can write while
        training continues.

        Raises:
            WeightsError: on every rank, a part could not be written.
        """
        with failing_together(ranks):
            folder.mkdir(parents=True, exist_ok=True)
            if ranks.is_first:
                (folder / COUNTERS).write_text(json.dumps(self.counters) + "\n", encoding="utf-8")
                (folder / MODEL).write_text(json.dumps(self.model, indent=2) + "\n", encoding="utf-8")
        with _translated_errors(f"training state {folder}: cannot write it; check disk space and permissions"):
            dcp.save(
                {},
                storage_writer=TensorWriter(folder, (COUNTERS, MODEL)),
                planner=PartsPlanner(self.parts),
                process_group=ranks.group,
                no_dist=ranks.size == 1,
            )


@dataclass(frozen=True)
class SavedState:
    """A training state on disk whose small files have been read and checked.

    Attributes:
        folder: the folder.
        metadata: torch's index of the saved tensors.
        counters: the saved counters.
        model: see ``describe_model``; empty if an earlier version wrote the folder.
        seal: checksums by file; ``None`` if an earlier version wrote the folder.
    """

    folder: Path
    metadata: Metadata
    counters: Mapping[str, int]
    model: Mapping[str, Any]
    seal: Mapping[str, SealedFile] | None

    @classmethod
    def open(cls, folder: Path) -> SavedState:
        """Read and check the small files of a folder.

        Raises:
            DamagedError: the training state is missing, incomplete or damaged.
        """
        if not (folder / METADATA).is_file() or not (folder / COUNTERS).is_file():
            raise DamagedError(
                f"training state {folder}: found none, or an incomplete one; give a folder that was saved as dcp"
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
                f"training state {folder}: cannot read {COUNTERS} or {MODEL} ({error!r}); copy the folder again"
            ) from error
        return cls(folder, read_metadata(folder / METADATA), counters, model, seal)

    @property
    def weights(self) -> dict[str, Any]:
        """Parameter name -> torch's metadata of the stored tensor."""
        saved = self.metadata.state_dict_metadata
        return {name.removeprefix(WEIGHT): entry for name, entry in saved.items() if name.startswith(WEIGHT)}

    def read(self, tensors: dict[str, Any], ranks: Ranks) -> None:
        """Fill tensors, plain or DTensors, by their names in the checkpoint. Collective. Checks all files.

        Raises:
            WeightsError: on every rank, if a file is damaged.
        """
        if self.seal is None:
            reader = DescribedReader(self.folder, self.metadata)
        else:
            reader = TensorReader(self.folder, self.metadata, self.seal, ranks)
        with _translated_errors(
            f"training state {self.folder}: its files are damaged or incomplete; copy the folder again"
        ):
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
    """Read weights into ``parameters`` in place; return the optimizer state by parameter name, the counters, and
    decisions.

    Collective.

    Args:
        folder: written by ``TrainingState.write``.
        parameters: the parameters that this process holds parts of.
        whole: names of all parameters of the model, on all processes; ``None`` if this process has all.

    Raises:
        WeightsError: on every rank, if the training state is missing or damaged, or its names, shapes or dtypes differ
            from those of ``parameters``.
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
        reason = "it has no checksums: an earlier version of Archon wrote it"
        decisions.append(Decision("trainer.resume", f"{folder}, checked", "not checked for damage", reason))
    return optimizer_state, dict(saved.counters), decisions


@contextmanager
def _translated_errors(message: str) -> Iterator[None]:
    """Turn errors of torch's saving and loading, which reach all ranks, into Archon's.

    ``CheckpointException`` is a ``BaseException``. The block also silences torch's warning about a missing process
    group, which one process does not need.
    """
    # Never restored: filters belong to the process, and another thread may be changing them.
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
            f"training state {saved.folder}: its weights have another dtype: {pairs}; resume with the dtype and "
            "archon.master_dtype that the run was started with, or start a new run from its export"
        )
