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
    """Write weights, optimizer state and counters into ``folder``, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {_WEIGHT + name: parameter.detach() for name, parameter in parameters.items()}
    for name, state in optimizer_state.items():
        tensors.update({f"{_STATE}{name}.{key}": value for key, value in state.items()})
    with _quiet():
        dcp.save(tensors, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    (folder / _COUNTERS).write_text(json.dumps(dict(counters)))


def load_training_state(
    folder: Path, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Read weights into ``parameters`` in place; return the optimizer state by parameter name, and the counters.

    Raises:
        WeightsError: the folder holds no training state, or its names and shapes are not those of ``parameters``.
    """
    if not (folder / ".metadata").is_file() or not (folder / _COUNTERS).is_file():
        raise WeightsError(f"training state {folder}: found no complete one there; name a folder written by a dcp save")
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
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
    with _quiet():
        dcp.load(tensors, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    return optimizer_state, json.loads((folder / _COUNTERS).read_text())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning that one process without a process group is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


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
