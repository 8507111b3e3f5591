"""Engines of the oracle, and the weights that all of them start from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.config.schema import ArchonOptions, EngineConfig, MicroBatchSpec, OptimizerConfig
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.seeding import derive_seed
from archon_testing.batches import STEP_LENGTHS
from archon_testing.cases import Case

CLIP_TO = 0.05
"""Far below every norm that occurs, so that all gradients are clipped and a wrong norm acts on the weights."""

OPTIMIZER = OptimizerConfig(type="adamw", lr=1e-2, weight_decay=0.1, eps=1e-3, gradient_clipping=CLIP_TO)
"""AdamW with an epsilon above most clipped gradients. With a small one, its update would not depend on the scale of the
gradients, which would hide a wrong norm; and where gradients are nearly zero it would turn their rounding into whole
steps, so that fp32 runs would part ways after the first one."""


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
    config = EngineConfig(
        backend=case.layout,
        is_critic=case.critic,
        dtype=case.dtype,
        mb_spec=MicroBatchSpec(n_mbs=case.n_mbs),
        optimizer=OPTIMIZER,
        archon=ArchonOptions(enable_compile=False, model=case.model, **schedule),
        **source,
    )
    plugins = registry()
    layout = parse_layout(case.layout, backends=backend_table(plugins.all(TrainEngineSpec)))
    factory = plugins.get(TrainEngineSpec, layout.backend).load()
    engine = factory(config, role="actor", layout=layout, seed=case.seed, total_steps=len(STEP_LENGTHS))
    engine.initialize()
    return engine


def write_checkpoint(case: Case, folder: Path) -> None:
    """Save weights of which none is zero or one, in Hugging Face's form, from one process.

    Fresh weights would hide mistakes: biases of zero that are added twice, norms of one that are not applied.
    """
    engine = build_engine(case.reference, None)
    fill_weights(engine.parameters, case.seed)
    shutil.rmtree(folder, ignore_errors=True)
    engine.save(folder, "hf")
    engine.close()


@torch.no_grad()
def fill_weights(parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    """Draw every parameter anew, in place, from the seed and its own name."""
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "verify weights", name))
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.copy_(_weight(name, noise))


def _weight(name: str, noise: Tensor) -> Tensor:
    """Matrices that keep activations of order 1, biases of order 0.2, norms around 1."""
    if noise.ndim >= 2:
        return noise * noise.shape[-1] ** -0.5
    return 0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise
