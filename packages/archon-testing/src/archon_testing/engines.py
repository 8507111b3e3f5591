"""Builds the oracle's engines and the checkpoints that they start from."""

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
from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.module import InitialValue
from archon_core.contracts.spec import load_target
from archon_core.plugins import registry
from archon_core.seeding import derive_seed
from archon_engine.checkpoint.adapter_files import ADAPTER_FOLDER
from archon_engine.models.initialize import initial_value
from archon_engine.models.parameter_names import named_weights, owners, weight_shapes
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_testing.batches import STEP_LENGTHS
from archon_testing.cases import BFLOAT16, LORA, Case

CLIP_TO = 0.05
"""Far below all norms in the tests, so that every gradient is clipped and a wrong norm changes the weights."""

OPTIMIZER = OptimizerConfig(
    type="adamw",
    lr=1e-2,
    weight_decay=0.1,
    eps=1e-3,
    gradient_clipping=CLIP_TO,
    lr_scheduler_type="linear",
    min_lr_ratio=0.5,
)
"""AdamW with an epsilon above most clipped gradients. With a small epsilon, the update would not depend on the scale of
the gradients, which would hide a wrong norm, and it would amplify the rounding of tiny gradients to whole steps, so
that fp32 runs diverge after the first step. The learning rate differs at every step, to detect a step counter that was
not restored."""

BALANCING = {
    "moe_aux_loss": "sequence",
    "moe_aux_loss_coef": 0.1,
    "moe_z_loss_coef": 0.01,
    "moe_bias_update_rate": 0.01,
}
"""Options of archon-moe that enable the router losses that do not depend on the split into micro-batches, and the
update of choice biases, which follows the loads of all ranks. Other expert packages may not have these options."""

CHOICE_BIAS = "router.choice_bias"
"""End of the names of choice biases (``archon_core.contracts.moe``), which are buffers."""

FEW_LAYERS = 4
"""Models with more layers, such as those with many pipeline stages, get smaller matrices: float32 rounding grows with
every layer, and would exceed the limit at twice as many layers even on one process."""

LORA_OPTIONS = {"use_lora": True, "lora_rank": 4, "lora_alpha": 2}
"""Options of archon-lora. Its random factors give products of order 1, which this scale halves."""

ADAPTED = "adapted"
CHECKPOINT = "checkpoint"
HEADLESS = "checkpoint-without-head"


def build_engine(case: Case, checkpoint: Path | None, *, balances: bool = True) -> Any:
    """The initialised engine of a case.

    Args:
        case: model, layout, dtypes.
        checkpoint: folder with the weights; ``None`` for initial weights from the seed.
        balances: whether experts have balancing losses and choice biases.

    Raises:
        ArchonError: from the engine; ``LayoutError`` if the layout does not fit the model.
    """
    source = {"model_config": dict(case.model_config)} if checkpoint is None else {"path": str(checkpoint)}
    schedule = {"pp_schedule": case.schedule} if case.schedule else {}
    recompute = {"ac_mode": case.recompute} if case.recompute != "none" else {}
    options = ArchonOptions(enable_compile=False, model=case.model, cp_style=case.cp_style, **schedule, **recompute)
    plugins = registry()
    if balances and "moe" in plugins.model_for(case.model_config["model_type"], case.model).needs:
        vars(options).update(BALANCING)
    config = ArchonEngineConfig(
        backend=case.layout,
        is_critic=case.critic,
        dtype=case.compute_dtype,
        gradient_checkpointing=bool(recompute),
        enable_tree_training=case.prefixes == "shared",
        mb_spec=MicroBatchSpec(n_mbs=case.n_mbs),
        optimizer=optimizer_of(case),
        archon=options,
        **source,
    )
    if case.lora:
        start = {} if checkpoint is None else {"lora_path": str(checkpoint.parent / ADAPTED / ADAPTER_FOLDER)}
        add_lora(config, **start)
    engine = assemble(config, seed=case.seed, total_steps=len(STEP_LENGTHS))
    engine.initialize()
    return engine


def add_lora(config: Any, **options: Any) -> None:
    """Give a model's section the options of archon-lora, switched on, in place."""
    [section] = [section for section in registry().get(AdapterSpec, LORA).config if section.path == "actor"]
    vars(config).update({**vars(load_target(section.schema)()), **LORA_OPTIONS, **options})


def optimizer_of(case: Case) -> OptimizerConfig:
    """The optimizer's options. In bfloat16 there is no clipping, so that gradients can be examined as summed."""
    return replace(OPTIMIZER, gradient_clipping=0.0) if case.compute_dtype == BFLOAT16 else OPTIMIZER


def write_checkpoints(case: Case, folder: Path, attempt: int = 0, *, balances: bool = True) -> None:
    """Save random weights, none of them zero or one, in Hugging Face format from one process; new ones per attempt.

    Initial weights would hide errors: zero biases that are added twice, norm weights of one that are not applied. A
    model that can start without some of its weights, such as a critic, gets a second checkpoint without them.
    """
    engine = build_engine(replace(case.reference, lora=False), None, balances=balances)
    fill_weights(engine.parameters, case.seed, attempt, starts=starting_points(engine.module))
    fill_choice_biases(named_weights(engine.module), case.seed, attempt)
    shutil.rmtree(folder, ignore_errors=True)
    engine.save(folder / CHECKPOINT, "hf")
    loaded = registry().model_for(engine.hf_config.model_type, case.model).load()
    arguments = loaded.arguments.from_hf_config(engine.hf_config, critic=case.critic)
    missing = loaded.weight_map(arguments).resolve(weight_shapes(engine.module)).initialised_if_missing
    engine.close()
    if case.lora:
        _write_adapters(case, folder, attempt)
    if missing:
        _copy_without(folder / CHECKPOINT, folder / HEADLESS, missing)


def _write_adapters(case: Case, folder: Path, attempt: int) -> None:
    """Save random adapters for the checkpoint in ``folder``. New ones would have a ``B`` of zeros, and so a gradient of
    zero for ``A``."""
    section = ArchonEngineConfig(path=str(folder / CHECKPOINT), dtype=case.dtype)
    section.archon = ArchonOptions(enable_compile=False, model=case.model)
    section.optimizer = OPTIMIZER
    add_lora(section)
    engine = assemble(section, seed=case.seed, total_steps=len(STEP_LENGTHS))
    engine.initialize()
    trained = {name: parameter for name, parameter in engine.parameters.items() if parameter.requires_grad}
    fill_weights(trained, case.seed, attempt, starts=starting_points(engine.module))
    engine.save(folder / ADAPTED, "hf")
    engine.close()


def partial_checkpoint(folder: Path) -> Path | None:
    """The reference's checkpoint without the weights that a model may initialise; ``None`` if there are none."""
    path = folder / HEADLESS
    return path if path.is_dir() else None


def _copy_without(source: Path, target: Path, names: Collection[str]) -> None:
    """Copies only weights and configuration: checksums and an index would still list the removed tensors."""
    target.mkdir()
    tensors = {name: t for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", target / "config.json")


@torch.no_grad()
def fill_weights(
    parameters: Mapping[str, nn.Parameter], seed: int, attempt: int = 0, *, starts: Mapping[str, InitialValue]
) -> None:
    """Redraw every parameter in place, as a function of the seed, its name and the number of the attempt.

    Args:
        starts: initial values of all parameters; vectors stay near them.
    """
    n_layers = len({name.split(".")[1] for name in parameters if name.startswith("layers.")})
    gain = min(1.0, FEW_LAYERS / max(n_layers, 1))
    again = [attempt] if attempt else []
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "verify weights", name, *again))
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.copy_(_weight(starts[name], noise, gain))


@torch.no_grad()
def fill_choice_biases(weights: Mapping[str, Tensor], seed: int, attempt: int = 0) -> None:
    """Redraw the choice biases among ``weights`` in place, as ``fill_weights`` does.

    They are large enough to change choices, and so small that most experts get tokens of every rank.
    """
    for name, bias in weights.items():
        if name.endswith(CHOICE_BIAS):
            generator = torch.Generator().manual_seed(derive_seed(seed, "verify biases", name, attempt))
            bias.copy_(0.05 * torch.randn(bias.shape, dtype=torch.float64, generator=generator))


def starting_points(module: nn.Module) -> dict[str, InitialValue]:
    """The initial value of every parameter, by global name."""
    return {name: initial_value(owner, attribute, parameter) for name, owner, attribute, parameter in owners(module)}


def _weight(start: InitialValue, noise: Tensor, gain: float) -> Tensor:
    """Matrices that keep activations at order 1 (times ``gain``); biases of order 0.2; norm weights near the identity,
    which is 1, or 0 if the module adds 1; rates of decay that let states outlive a dozen tokens."""
    if noise.ndim >= 2:
        return gain * noise * noise.shape[-1] ** -0.5
    if start == "log_uniform":
        return 0.5 * noise - 2.5
    return 0.2 * noise if start == "zeros" else 1 + 0.2 * noise
