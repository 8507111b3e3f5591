"""Training state in torch's distributed checkpoint format: weights and optimizer state under global parameter names.

Names and values do not depend on how tensors are sharded, so a run can continue on another layout.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from archon_core.distributed.failing_together import failing_together
from archon_core.distributed.ranks import Ranks
from archon_core.errors import WeightsError

_WEIGHT = "weights."
_STATE = "optimizer."
_COUNTERS = "counters.json"


def save_training_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer_state: Mapping[str, Mapping[str, Any]],
    counters: Mapping[str, int],
) -> None:
    """Write weights, optimizer state and counters into ``folder``, which is created. Collective.

    Raises:
        WeightsError: on every rank, a part could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {_WEIGHT + name: parameter.detach() for name, parameter in parameters.items()}
    for name, state in optimizer_state.items():
        tensors.update({f"{_STATE}{name}.{key}": value for key, value in state.items()})
    with _in_our_terms(f"training state {folder}: it could not be written; see to the disk's space and permissions"):
        dcp.save(tensors, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    if Ranks.of_process_group().is_first:
        (folder / _COUNTERS).write_text(json.dumps(dict(counters)))


def load_training_state(
    folder: Path, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Read weights into ``parameters`` in place; return the optimizer state by parameter name, and the counters.

    Collective.

    Raises:
        WeightsError: on every rank, the folder holds no training state, a damaged one, or one whose names and shapes
            are not those of ``parameters``.
    """
    with failing_together(Ranks.of_process_group()):
        saved, counters = _read_metadata(folder)
        _check_names_and_shapes(folder, parameters, saved)
    tensors: dict[str, Any] = {_WEIGHT + name: parameter.detach() for name, parameter in parameters.items()}
    optimizer_state: dict[str, dict[str, Tensor]] = {}
    for key, metadata in saved.items():
        if not key.startswith(_STATE):
            continue
        name, _, entry = key.removeprefix(_STATE).rpartition(".")
        parameter = parameters[name].detach()
        like = torch.empty_like(parameter) if metadata.size == parameter.shape else torch.empty(metadata.size)
        tensors[key] = like.to(metadata.properties.dtype)
        optimizer_state.setdefault(name, {})[entry] = tensors[key]
    with _in_our_terms(f"training state {folder}: its files are damaged or incomplete; copy it anew"):
        dcp.load(tensors, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    return optimizer_state, counters


def _read_metadata(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What is saved there under which name, and the counters."""
    if not (folder / ".metadata").is_file() or not (folder / _COUNTERS).is_file():
        raise WeightsError(f"training state {folder}: found no complete one there; name a folder written by a dcp save")
    try:
        saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        return saved, json.loads((folder / _COUNTERS).read_text())
    except Exception as error:  # what unpickling raises depends on the damage
        raise WeightsError(f"training state {folder}: its description is damaged ({error!r}); copy it anew") from error


@contextmanager
def _in_our_terms(message: str) -> Iterator[None]:
    """Around torch's saving and loading, which tells all ranks when one fails.

    Its error is no ``Exception``. It warns that one process without a process group is one process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            yield
        except CheckpointException as error:
            causes = "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in sorted(error.failures.items()))
            raise WeightsError(f"{message} ({causes})") from error


def _check_names_and_shapes(folder: Path, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Any]) -> None:
    found = {key.removeprefix(_WEIGHT): tuple(m.size) for key, m in saved.items() if key.startswith(_WEIGHT)}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    problems = [f"missing {name} {wanted[name]}" for name in wanted.keys() - found.keys()]
    problems += [f"unexpected {name} {found[name]}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name}: found {found[name]}, the model has {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    if problems:
        raise WeightsError(
            f"training state {folder} does not fit the model:\n  "
            + "\n  ".join(sorted(problems))
            + "\nresume with the model configuration that the run was started with"
        )
