"""From a configuration to a module with weights: find the spec, build on the meta device, materialise, fill.

What shards a module comes between building and materialising.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archon_core.checkpoint.hf import load_hf_weights
from archon_core.config.decisions import Decision
from archon_core.config.schema import EngineConfig
from archon_core.engine.effective import EffectiveConfig
from archon_core.errors import ConfigError
from archon_core.models.hf_config import checkpoint_folder, load_hf_config
from archon_core.models.initialize import initialize_weights
from archon_core.models.materialize import materialize_empty
from archon_core.models.parameter_names import weight_shapes
from archon_core.models.weight_map import ResolvedMap
from archon_core.nn.attention import check_attention_backend, set_attention_backend
from archon_core.plugins.registry import Registry
from archon_core.plugins.specs import ModelSpec
from archon_core.protocols import CausalModule, ModelArguments


@dataclass(frozen=True)
class Assembled:
    """A module ready to run.

    Attributes:
        spec: the model spec that it was built from.
        hf_config: the checkpoint's configuration, as ``transformers`` reads it.
        arguments: the model's own sizes and options.
        module: on its device, with its weights.
        weights: which Hugging Face tensor holds which of the module's parameters.
    """

    spec: ModelSpec
    hf_config: Any
    arguments: ModelArguments
    module: CausalModule
    weights: ResolvedMap


def assemble(
    config: EngineConfig, effective: EffectiveConfig, *, registry: Registry, role: str, seed: int
) -> tuple[Assembled, list[Decision]]:
    """Build the model that ``config`` names; what was done other than asked comes with it.

    Raises:
        ConfigError: not exactly one of ``path`` and ``model_config`` is given, or an option does not fit the model.
        ModelError: the model's configuration cannot be read or expressed.
        UnknownNameError: no installed plugin serves the model type.
        WeightsError: the checkpoint does not fit.
    """
    _check_source(config, role)
    hf_config = load_hf_config(config.model_config if config.model_config is not None else config.path)
    spec = registry.model_for(hf_config.model_type, config.archon.model)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=config.is_critic)
    _refuse_dropout(config, arguments, role)
    dtype = getattr(torch, effective.dtype)
    with torch.device("meta"):
        module = model.module(arguments).to(dtype)
    weights = model.weight_map(arguments).resolve(weight_shapes(module))
    if effective.attn_type is not None:
        backend = check_attention_backend(effective.attn_type, effective.device, dtype, arguments.head_dim)
        set_attention_backend(module, backend)
    materialize_empty(module, effective.device)
    assembled = Assembled(spec, hf_config, arguments, module, weights)
    if config.path is None or config.init_from_scratch:
        initialize_weights(module, seed, hf_config.initializer_range)
        return assembled, []
    return assembled, load_weights(assembled, checkpoint_folder(config.path), role=role, seed=seed)


def load_weights(assembled: Assembled, folder: Path, *, role: str, seed: int) -> list[Decision]:
    """Fill the module from a Hugging Face folder; what a checkpoint may lack is drawn from the seed, as a decision.

    Raises:
        WeightsError: the checkpoint does not fit.
    """
    report = load_hf_weights(assembled.module, assembled.weights, folder)
    initialize_weights(assembled.module, seed, assembled.hf_config.initializer_range, only=report.initialised)
    return [
        Decision(f"{role}.path", f"{name} of {folder}", "random, from the seed", "the checkpoint has none")
        for name in report.initialised
    ]


def _check_source(config: EngineConfig, role: str) -> None:
    if (config.path is None) == (config.model_config is None):
        found = "neither" if config.path is None else "both"
        raise ConfigError(
            f"{role}.path and {role}.model_config: found {found}; exactly one says what to build: a checkpoint's "
            "path, or a Hugging Face configuration written in place (with random weights)"
        )


def _refuse_dropout(config: EngineConfig, arguments: ModelArguments, role: str) -> None:
    dropout = getattr(arguments, "attention_dropout", 0.0)
    if dropout and not config.disable_dropout:
        raise ConfigError(
            f"{role}.disable_dropout: found false with attention_dropout {dropout} in the model's configuration; this "
            f"model applies no dropout; set {role}.disable_dropout=true"
        )
