"""Engines of the oracle, and the weights that all of them start from."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from archon_core import assemble
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.module import InitialValue
from archon_core.plugins import registry
from archon_core.seeding import derive_seed
from archon_engine.models.initialize import initial_value
from archon_engine.models.parameter_names import owners, weight_shapes
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_testing.batches import STEP_LENGTHS
from archon_testing.cases import BFLOAT16, Case

CLIP_TO = 0.05
"""Far below every norm that occurs, so that all gradients are clipped and a wrong norm acts on the weights."""

OPTIMIZER = OptimizerConfig(
    type="adamw",
    lr=1e-2,
    weight_decay=0.1,
    eps=1e-3,
    gradient_clipping=CLIP_TO,
    lr_scheduler_type="linear",
    min_lr_ratio=0.5,
)
"""AdamW with an epsilon above most clipped gradients. With a small one, its update would not depend on the scale of the
gradients, which would hide a wrong norm; and where gradients are nearly zero it would turn their rounding into whole
steps, so that fp32 runs would part ways after the first one. Every step has a rate of its own: a step counter that is
not resumed shows."""

BALANCING = {"moe_aux_loss": "sequence", "moe_aux_loss_coef": 0.1, "moe_z_loss_coef": 0.01}
"""Options of archon-moe, so that losses of routers are compared, too: those that depend on no split into micro-batches.
Another package that builds experts may not know them."""

FEW_LAYERS = 4
"""Of models with more, such as those of many pipeline stages, matrices are smaller: rounding in float32 grows with
every layer, and with twice as many beyond the limit, on one process too."""

CHECKPOINT = "checkpoint"
HEADLESS = "checkpoint-without-head"


def build_engine(case: Case, checkpoint: Path | None) -> Any:
    """The initialised engine of a case.

    Args:
        case: model, layout, types.
        checkpoint: folder with the weights; ``None`` builds the model anew, from the seed.

    Raises:
        ArchonError: as the engine does; ``LayoutError`` for a layout that does not fit the model.
    """
    source = {"model_config": dict(case.model_config)} if checkpoint is None else {"path": str(checkpoint)}
    schedule = {"pp_schedule": case.schedule} if case.schedule else {}
    recompute = {"ac_mode": case.recompute} if case.recompute != "none" else {}
    options = ArchonOptions(enable_compile=False, model=case.model, **schedule, **recompute)
    plugins = registry()
    if "moe" in plugins.model_for(case.model_config["model_type"], case.model).needs:
        vars(options).update(BALANCING)
    config = ArchonEngineConfig(
        backend=case.layout,
        is_critic=case.critic,
        dtype=case.compute_dtype,
        gradient_checkpointing=bool(recompute),
        mb_spec=MicroBatchSpec(n_mbs=case.n_mbs),
        optimizer=optimizer_of(case),
        archon=options,
        **source,
    )
    engine = assemble(config, seed=case.seed, total_steps=len(STEP_LENGTHS))
    engine.initialize()
    return engine


def optimizer_of(case: Case) -> OptimizerConfig:
    """The optimizer's options. In bfloat16 nothing is clipped: gradients are looked at as they were summed."""
    return replace(OPTIMIZER, gradient_clipping=0.0) if case.compute_dtype == BFLOAT16 else OPTIMIZER


def write_checkpoints(case: Case, folder: Path, attempt: int = 0) -> None:
    """Save weights of which none is zero or one, in Hugging Face's form, from one process; others for each attempt.

    Fresh weights would hide mistakes: biases of zero that are added twice, norms of one that are not applied. A model
    that can start without some of its weights, as a critic can, gets a second checkpoint that lacks them.
    """
    engine = build_engine(case.reference, None)
    fill_weights(engine.parameters, case.seed, attempt, starts=starting_points(engine.module))
    shutil.rmtree(folder, ignore_errors=True)
    engine.save(folder / CHECKPOINT, "hf")
    loaded = registry().model_for(engine.hf_config.model_type, case.model).load()
    arguments = loaded.arguments.from_hf_config(engine.hf_config, critic=case.critic)
    missing = loaded.weight_map(arguments).resolve(weight_shapes(engine.module)).initialised_if_missing
    engine.close()
    if missing:
        _copy_without(folder / CHECKPOINT, folder / HEADLESS, missing)


def headless(folder: Path) -> Path | None:
    """The checkpoint in a reference's folder that lacks what a model may draw; ``None`` where it may draw nothing."""
    path = folder / HEADLESS
    return path if path.is_dir() else None


def _copy_without(source: Path, target: Path, names: Collection[str]) -> None:
    """Weights and configuration alone: checksums and an index would still speak of what is left out."""
    target.mkdir()
    tensors = {name: t for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", target / "config.json")


@torch.no_grad()
def fill_weights(
    parameters: Mapping[str, nn.Parameter], seed: int, attempt: int = 0, *, starts: Mapping[str, InitialValue]
) -> None:
    """Draw every parameter anew, in place, from the seed, its own name and the number of the attempt.

    Args:
        starts: how they start, of all of them: vectors stay near that.
    """
    n_layers = len({name.split(".")[1] for name in parameters if name.startswith("layers.")})
    gain = min(1.0, FEW_LAYERS / max(n_layers, 1))
    again = [attempt] if attempt else []
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "verify weights", name, *again))
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.copy_(_weight(starts[name], noise, gain))


def starting_points(module: nn.Module) -> dict[str, InitialValue]:
    """How every parameter of a module starts, by its global name."""
    return {name: initial_value(owner, attribute, parameter) for name, owner, attribute, parameter in owners(module)}


def _weight(start: InitialValue, noise: Tensor, gain: float) -> Tensor:
    """Matrices that keep activations of order 1 or, times ``gain``, below; biases of order 0.2, norms around what
    leaves activations as they are, which is 1 where the module does not add that itself."""
    if noise.ndim >= 2:
        return gain * noise * noise.shape[-1] ** -0.5
    return 0.2 * noise if start == "zeros" else 1 + 0.2 * noise
