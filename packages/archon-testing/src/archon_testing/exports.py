"""Reads the files of an ``hf`` save with safetensors and compares them with the ranks' weights.

Every rank compares its own shards, through the model's weight map, which shows whose part of a file is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import registry
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import weight_shapes
from archon_testing.cases import Case
from archon_testing.held_shards import HeldShard


def weight_map_of(case: Case) -> ResolvedMap:
    """The weight map of a case's whole model."""
    hf_config = load_hf_config(case.model_config)
    spec = registry().model_for(hf_config.model_type, case.model)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=case.critic)
    with torch.device("meta"):
        whole = build_module(spec, arguments)
    return model.weight_map(arguments).resolve(weight_shapes(whole))


def save_and_read(engine: Any, folder: Path) -> dict[str, Tensor]:
    """Every tensor that ``engine`` writes as ``hf``, by its Hugging Face name. Collective."""
    engine.save(folder, "hf")
    return read_files(folder)


def read_files(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, by name."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def export_errors(
    files: Mapping[str, Tensor], own: Mapping[str, HeldShard], weights: ResolvedMap
) -> tuple[dict[str, float], list[str]]:
    """Errors of exported tensors against this rank's weights; unexpected, missing and misshapen tensors.

    Args:
        files: Hugging Face name -> exported tensor.
        own: Archon's name -> this rank's shard.
        weights: weight map of the whole model.

    Returns:
        Hugging Face name -> relative error, for tensors with a part on this rank; and problems.
    """
    problems = [f"the export lacks {name}" for name in weights.hf_shapes if name not in files]
    problems += [f"the export has {name}, which the model lacks" for name in files if name not in weights.hf_shapes]
    misshapen = [name for name, shape in weights.hf_shapes.items() if name in files and files[name].shape != shape]
    problems += [
        f"the export's {name} has shape {list(files[name].shape)}, not {list(weights.hf_shapes[name])}"
        for name in misshapen
    ]
    errors: dict[str, float] = {}
    for hf_name, mine, exported in _pairs(files, own, weights):
        right = mine.to(exported.dtype).double()
        difference = _largest(right - exported.double())
        error = difference / (_largest(right) or 1.0) if difference == difference else float("inf")
        errors[hf_name] = max(errors.get(hf_name, 0.0), error)
    return errors, problems


def expected_export(hf_name: str, shards: list[Mapping[str, HeldShard]], weights: ResolvedMap) -> Tensor:
    """The expected exported tensor, assembled from all ranks' shards."""
    whole = torch.full(weights.hf_shapes[hf_name], torch.nan, dtype=torch.float64)
    for own in shards:
        for name, shard in own.items():
            for link in weights.links_in(name, shard.box):
                if link.hf == hf_name:
                    values = shard.values[link.our_box.relative_to(shard.box.start).slices]
                    link.as_ours(whole[link.hf_box.slices]).copy_(values)
    return whole


def parameters_in(hf_name: str, weights: ResolvedMap) -> set[str]:
    """Archon's names of the tensors that an exported tensor consists of."""
    return {link.ours for link in weights.links_of_hf[hf_name]}


def _pairs(
    files: Mapping[str, Tensor], own: Mapping[str, HeldShard], weights: ResolvedMap
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, own values and exported values of every part of an exported tensor on this rank."""
    for name, shard in own.items():
        for link in weights.links_in(name, shard.box):
            if link.hf in files and files[link.hf].shape == weights.hf_shapes[link.hf]:
                mine = shard.values[link.our_box.relative_to(shard.box.start).slices]
                yield link.hf, mine, link.as_ours(files[link.hf][link.hf_box.slices])


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
