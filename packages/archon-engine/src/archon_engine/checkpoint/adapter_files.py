"""Adapters alone, in the format of PEFT: ``adapter_config.json`` beside ``adapter_model.safetensors``.

The names of tensors come from the adapter's weight map; gathering and writing are those of whole models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.adapters import Adapter
from archon_core.errors import WeightsError
from archon_core.models.json_file import read_entries
from archon_core.models.weight_map import ResolvedMap
from archon_core.serving.adapter_versions import CONFIG_FILE, WEIGHTS_FILE
from archon_engine.checkpoint.safetensors_file import SafetensorsReader, SafetensorsWriter
from archon_engine.models.parameter_names import named_weights
from archon_engine.models.weight_conversion import BoxCopier, assemble_hf, copy_from, fill_ours, send_shards
from archon_engine.parallel.shards import local_part

ADAPTER_FOLDER = "adapter"
"""Folder of the adapters inside an exported model. Beside merged weights, transformers would apply them once more."""

_CHANGES = (
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
)
"""Entries of PEFT's configuration whose effect Archon does not reproduce, unless they are false or empty."""


def save_adapter(
    tensors: Mapping[str, Tensor] | BoxCopier,
    weights: ResolvedMap,
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    write: bool = True,
) -> None:
    """Write the adapters of a model into ``folder``, which is created.

    Args:
        tensors: our whole tensors by name, or a function that copies a box of one; it may gather from other ranks.
        weights: the map of the adapters' parameters.
        config: content of ``adapter_config.json``.
        dtype: dtype to store.
        write: false on ranks that only send their shards.

    Raises:
        WeightsError: the folder cannot be written. It is raised after all shards were received.
    """
    copy_ours = tensors if callable(tensors) else copy_from(tensors)
    if not write:
        for name in weights.hf_shapes:
            send_shards(name, weights, copy_ours)
        return
    whole = {name: assemble_hf(name, weights, copy_ours, dtype) for name in weights.hf_shapes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with SafetensorsWriter(folder / WEIGHTS_FILE, {n: (dtype, t.shape) for n, t in whole.items()}) as writer:
            for name, tensor in whole.items():
                writer.write(name, tensor)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"adapter {folder}: cannot write it ({error}); check disk space and permissions") from error


@torch.no_grad()
def load_adapter(module: nn.Module, adapter: Adapter, weights: ResolvedMap, folder: Path) -> None:
    """Fill this process's part of the adapters in ``module`` from a folder in PEFT's format, in place.

    Raises:
        WeightsError: the folder lacks a file, or holds other adapters than the options describe.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsError(f"adapter {folder}: found no {name}; give a folder that PEFT or Archon saved")
    stored = read_entries(folder / CONFIG_FILE)
    wanted = adapter.file_config(None)
    problems = [
        f"{key}: found {stored.get(key)!r}, the options say {wanted[key]!r}"
        for key in ("peft_type", "r", "lora_alpha")
        if stored.get(key) != wanted[key]
    ]
    problems += [f"{key}: found {stored[key]!r}, which changes the product" for key in _CHANGES if stored.get(key)]
    file = SafetensorsReader(folder / WEIGHTS_FILE)
    shapes = dict(weights.hf_shapes)
    problems += [f"missing {name}" for name in shapes.keys() - file.shapes.keys()]
    problems += [f"unexpected {name}" for name in file.shapes.keys() - shapes.keys()]
    problems += [
        f"{name}: found {file.shapes[name]}, the model has {shapes[name]}"
        for name in shapes.keys() & file.shapes.keys()
        if file.shapes[name] != shapes[name]
    ]
    if problems:
        raise WeightsError(
            f"adapter {folder} does not fit the model and its options:\n  "
            + "\n  ".join(sorted(problems))
            + "\nset the options to those of the adapter, or give another one"
        )
    for name, weight in named_weights(module).items():
        if name in weights.shapes:
            storage, box = local_part(weight)
            if box.numel:
                fill_ours(storage, name, box, weights, file.read)
