"""Checkpoint checks: a bitwise round trip through Hugging Face files, and loading with ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from archon_core.errors import WeightsError
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.initialize import build_module, initialize_weights, materialize_empty
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_testing.model_checks.built import BuiltModel, distance, require

LENGTHS = (11,)


def check_round_trip(model: BuiltModel, folder: Path, *, hf_class: Any, tolerance: float) -> None:
    """Save, load into a new module, and compare the weights bitwise."""
    model.module.to(torch.float32)
    save_hf_weights(
        model.named, model.weights, folder / "saved", model.hf_config, dtype=torch.float32, critic=model.case.critic
    )
    again, initialised = _load(model, folder / "saved", critic=model.case.critic)
    require(
        not initialised,
        f"after saving and loading, {', '.join(initialised)} would be initialised again: it was not saved",
    )
    for name, weight in model.named.items():
        require(
            torch.equal(named_weights(again)[name], weight),
            f"{name} is not the same after saving and loading: the rules of the weight map do not undo each other",
        )
    if model.case.critic:
        _check_critic(model, folder)
    else:
        _check_transformers_loads(model, folder / "saved", hf_class, tolerance)


def _load(model: BuiltModel, folder: Path, *, critic: bool) -> tuple[torch.nn.Module, tuple[str, ...]]:
    arguments = model.loaded.arguments.from_hf_config(model.hf_config, critic=critic)
    with torch.device("meta"):
        module = build_module(model.spec, arguments)
    materialize_empty(module, "cpu")
    weights = model.loaded.weight_map(arguments).resolve(weight_shapes(module))
    return module, load_hf_weights(module, weights, folder).initialised


def _check_critic(model: BuiltModel, folder: Path) -> None:
    """Check that a critic can start from a language model's checkpoint and initialises its head."""
    arguments = model.loaded.arguments.from_hf_config(model.hf_config, critic=False)
    body = build_module(model.spec, arguments)
    initialize_weights(body, model.case.seed, 0.5)
    weights = model.loaded.weight_map(arguments).resolve(weight_shapes(body))
    save_hf_weights(named_weights(body), weights, folder / "body", model.hf_config, dtype=torch.float32)
    try:
        critic, initialised = _load(model, folder / "body", critic=True)
    except WeightsError as error:
        raise AssertionError(
            "a critic cannot start from a language model's checkpoint: give the value head's rule init_if_missing=True "
            f"and Drop the language-model head. {error}"
        ) from error
    require(
        len(initialised) == 1, f"a critic on a language model's body draws {initialised or 'nothing'}, not its head"
    )
    n_values = named_weights(critic)[initialised[0]].shape[0]
    require(n_values == 1, f"the value head {initialised[0]} gives {n_values} values per token, not 1")
    for name, weight in named_weights(body).items():
        if name in named_weights(critic) and name != initialised[0]:
            require(torch.equal(named_weights(critic)[name], weight), f"a critic does not take over {name}")


def _check_transformers_loads(model: BuiltModel, folder: Path, hf_class: Any, tolerance: float) -> None:
    from transformers import AutoModelForCausalLM

    hf, info = (hf_class or AutoModelForCausalLM).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, trust_remote_code=False
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        require(not info[kind], f"transformers loads what was saved with {kind}: {info[kind]}")
    ids = model.ids(sum(LENGTHS))
    with torch.no_grad():
        error = distance(model.run(ids, LENGTHS, "logits")["logits"], hf(ids[None], use_cache=False).logits[0])
    require(
        error <= max(tolerance, 1e-5),
        f"transformers loads what was saved, and its logits differ by {error:.1e}: rules of the weight map exchange "
        "tensors of equal shape, or config.json lacks an option",
    )
