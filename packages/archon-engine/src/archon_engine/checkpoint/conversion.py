"""Converts a training state to a Hugging Face folder and back, on one process, without building the model's weights.

Memory holds one tensor at a time, besides mapped files. The module is built on the meta device, for the names and
shapes of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError, WeightsError
from archon_core.models.box import Box, Shape
from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import registry
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.dcp import (
    WEIGHT,
    SavedState,
    TrainingState,
    describe_model,
)
from archon_engine.checkpoint.hf import OpenCheckpoint, fill_from, open_checkpoint
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.checkpoint.parts import Part
from archon_engine.checkpoint.publication import publish_folder
from archon_engine.checkpoint.seal import check_share
from archon_engine.checkpoint.step_folders import saved_steps, step_folder
from archon_engine.checkpoint.stored_weights import StoredWeights
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import weight_shapes
from archon_engine.models.weight_conversion import stored_dtype


@dataclass(frozen=True)
class _Model:
    """A model without its weights.

    Attributes:
        stored: name -> shape of the parameters and persistent buffers of a training state.
    """

    name: str
    hf_config: Any
    weights: ResolvedMap
    stored: dict[str, Shape]


def find_state(source: Path) -> Path:
    """Find the folder of a training state: ``source`` itself, its ``dcp`` folder, or that of a run's last checkpoint.

    Raises:
        ConfigError: there is no training state.
    """
    last = [step_folder(source, step) / "dcp" for step in saved_steps(source)[-1:]]
    candidates = [source, source / "dcp", *last]
    found = next((folder for folder in candidates if (folder / ".metadata").is_file()), None)
    if found is None:
        raise ConfigError(
            f"{source}: found no training state; give a run folder, one of its checkpoints, or a dcp folder"
        )
    return found


def convert_to_hf(source: Path, destination: Path, *, config: str | None = None, dtype: str | None = None) -> Path:
    """Write the weights of a training state as a Hugging Face folder.

    Args:
        source: see ``find_state``. If it lies in a run folder, the run's tokenizer is copied, too.
        destination: a new or empty folder.
        config: folder or hub id with the model's ``config.json``, for states that contain none.
        dtype: dtype to store; ``None`` for that of the state.

    Returns:
        The folder of the training state.

    Raises:
        ArchonError: a file is missing or damaged, or does not fit the model.
    """
    _refuse_occupied(destination)
    state = find_state(source)
    saved = SavedState.open(state)
    entries, critic, name = saved.model.get("hf_config"), saved.model.get("critic", False), saved.model.get("model")
    if (adapter := saved.model.get("adapter")) is not None:
        raise WeightsError(
            f"training state {state}: found adapters ({adapter}) without the weights of their model; use the run's "
            "export, which has them merged"
        )
    if config is None and entries is None:
        raise ConfigError(f"training state {state}: found no model configuration; give it with --config")
    hf_config = load_hf_config(config if config is not None else entries)
    model = _describe(hf_config, critic=critic, name=name if config is None else None)
    stored = StoredWeights(saved)
    problems = _differences(stored.shapes, model.stored)
    if problems:
        raise WeightsError(
            f"training state {state} does not fit the model:\n  "
            + "\n  ".join(problems)
            + "\ngive the configuration of this state's model with --config"
        )
    wide = {link.ours for name in model.weights.kept_in_fp32 for link in model.weights.links_of_hf[name]}
    types = {kind for name, kind in stored.dtypes.items() if name not in wide}
    with publish_folder(destination) as folder:
        save_hf_weights(
            stored.copy,
            model.weights,
            folder,
            model.hf_config,
            dtype=_single_dtype(types, dtype, state),
            critic=critic,
            companions_from=_tokenizer_of(state),
        )
    return state


def convert_to_dcp(
    source: Path, destination: Path, *, dtype: str | None = None, run_as: str | None = None
) -> list[Decision]:
    """Write the weights of a Hugging Face folder as a training state at step zero, without optimizer state.

    Args:
        source: a folder with safetensors files and ``config.json``.
        destination: a new or empty folder.
        dtype: dtype to store; ``None`` for that of the folder.
        run_as: name of the model spec that will load it; ``None`` for the one that serves the model type.

    Returns:
        Decisions about files and tensors of the folder that were not read.

    Raises:
        ArchonError: a file is missing or damaged, or does not fit the model.
    """
    _refuse_occupied(destination)
    hf_config = load_hf_config(source)
    critic = any(name.endswith("ForSequenceClassification") for name in hf_config.architectures or ())
    model = _describe(hf_config, critic=critic, name=run_as)
    check_share(source, Ranks())
    checkpoint = open_checkpoint(source)
    weights, report = checkpoint.form_of(model.weights)
    if not report.fits or report.initialised:
        lacking = [f"missing     {name}" for name in report.initialised]
        raise WeightsError(
            f"checkpoint {source} does not fit the model:\n  "
            + "\n  ".join(report.lines() + lacking)
            + "\ngive a folder whose weights match its config.json"
        )
    # Decoded tensors get the dtype of the others.
    others = set(weights.hf_shapes) - set(weights.encoded) - weights.kept_in_fp32
    kind = _single_dtype({checkpoint.dtype(name) for name in others}, dtype, source)
    parts = []
    for name, shape in model.stored.items():
        own = stored_dtype(weights.links_of_ours[name][0].hf, weights, kind)
        parts.append(Part(WEIGHT + name, shape, Box.whole(shape), own, _reader(name, shape, own, weights, checkpoint)))
    with publish_folder(destination) as folder:
        described = describe_model(hf_config, critic=critic, name=model.name)
        TrainingState(parts, {"version": 0}, described).write(folder, Ranks())
    return checkpoint.plan.decisions("source")


def _describe(hf_config: Any, *, critic: bool, name: str | None) -> _Model:
    installed = registry()
    spec = installed.model_for(hf_config.model_type, name)
    parts = spec.load()
    arguments = parts.arguments.from_hf_config(hf_config, critic=critic)
    with torch.device("meta"):
        module = build_module(spec, arguments, installed=installed)
    weights = parts.weight_map(arguments).resolve(weight_shapes(module))
    # Persistent buffers too, such as the biases of routers.
    stored = {name: shape for name, shape in weights.shapes.items() if name in weights.stored}
    return _Model(spec.name, hf_config, weights, stored)


def _reader(
    name: str, shape: Shape, dtype: torch.dtype, weights: ResolvedMap, checkpoint: OpenCheckpoint
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        values = torch.empty(shape, dtype=dtype)
        fill_from(checkpoint, values, name, Box.whole(shape), weights)
        return values

    return read


def _single_dtype(found: set[torch.dtype], requested: str | None, source: Path) -> torch.dtype:
    if requested is not None:
        return getattr(torch, requested)
    if len(found) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise ConfigError(f"{source}: found weights of several dtypes ({names}); choose one with --dtype")
    [dtype] = found
    return dtype


def _differences(found: dict[str, Shape], wanted: dict[str, Shape]) -> list[str]:
    missing = [f"missing {name} {wanted[name]}" for name in wanted if name not in found]
    unexpected = [f"unexpected {name} {found[name]}" for name in found if name not in wanted]
    misshapen = [
        f"{name}: found {found[name]}, the model has {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return missing + unexpected + misshapen


def _tokenizer_of(state: Path) -> Path | None:
    """A run's tokenizer, for the state ``<run>/checkpoints/step-N/dcp``."""
    run = state.absolute().parents[2] if len(state.absolute().parents) > 2 else None
    return run / "tokenizer" if run is not None and (run / "tokenizer").is_dir() else None


def _refuse_occupied(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination}: found a file, or a folder that is not empty; give a new or empty folder")
