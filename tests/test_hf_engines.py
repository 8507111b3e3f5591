"""transformers' modules in the engine: the same numbers as a model of ours, every option, and every refusal."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from archon_core import parse_layout, registry
from archon_core.config.schema import ArchonOptions, EngineConfig, MicroBatchSpec, OptimizerConfig
from archon_core.engine.archon import ArchonEngine
from archon_core.errors import ConfigError, LayoutError, ModelError
from archon_core.models.parameter_names import weight_shapes
from archon_core.models.weight_conversion import assemble_hf, copy_from
from archon_core.plugins.specs import TrainEngineSpec, load_target
from archon_testing.batches import deal, make_batch
from archon_testing.losses import NegativeLogLikelihood, oracle_loss
from archon_testing.worlds import run_world

OPTIMIZER = OptimizerConfig(type="adamw", lr=1e-2, weight_decay=0.1, eps=1e-3, gradient_clipping=1e6)
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}


def make_engine(backend, *, path=None, entries=None, n_mbs=1, critic=False, **options):
    layout = parse_layout(backend)
    engine = registry().get(TrainEngineSpec, layout.backend).load()(
        EngineConfig(
            backend=backend,
            path=None if path is None else str(path),
            model_config=entries,
            dtype="float32",
            is_critic=critic,
            optimizer=OPTIMIZER,
            mb_spec=MicroBatchSpec(n_mbs=n_mbs),
            archon=ArchonOptions(**{"enable_compile": False, **options}),
        ),
        role="actor",
        layout=layout,
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def whole_batch(step):
    return make_batch(step, vocab_size=128, longest=512, dtype=torch.float32, seed=1)


def train(engine, steps):
    """Losses and norms of steps on the same batches, whatever the layout."""
    told = []
    for step in steps:
        batch, ranks = whole_batch(step), engine.data_ranks
        stats = engine.train_batch(batch.select(deal(len(batch), ranks.size)[ranks.rank]), oracle_loss(critic=False))
        told.append((stats.loss, stats.gradient_norm))
    return told


def in_transformers_names(engine, tensors):
    """Whole tensors by our names, as transformers calls them."""
    loaded = registry().model_for(engine.hf_config.model_type, engine.module_spec).load()
    arguments = loaded.arguments.from_hf_config(engine.hf_config, critic=False)
    weights = loaded.weight_map(arguments).resolve(weight_shapes(engine.module))
    return {name: assemble_hf(name, weights, copy_from(tensors), torch.float32) for name in weights.hf_shapes}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def one_step(backend, checkpoint, model):
    """Of one step from a checkpoint, by transformers' names: what was told, every gradient, every weight."""
    engine = make_engine(backend, path=checkpoint, n_mbs=2, model=model)
    engine.module_spec = "hf" if backend.startswith("fsdp") else model
    [told] = train(engine, [0])
    gradients = {name: whole(parameter.grad) for name, parameter in engine.parameters.items()}
    weights = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    return told, in_transformers_names(engine, gradients), in_transformers_names(engine, weights)


def write_qwen3(folder):
    engine = make_engine(
        "archon:d1", entries={**load_target(registry().get("model", "qwen3").tiny_config)(), "initializer_range": 0.3}
    )
    engine.save(folder, "hf")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3") / "checkpoint"
    run_world(write_qwen3, 1, (folder,))
    return folder, run_world(one_step, 1, ("archon:d1", folder, None))[0]


@pytest.mark.parametrize("dims", ["d2", "t2", "d2t2"])
def test_only_the_prefix_of_a_layout_changes_and_no_number(qwen3, dims):
    checkpoint, (told, gradients, weights) = qwen3
    found_told, found_gradients, found_weights = run_world(
        one_step, parse_layout(f"fsdp:{dims}").world_size, (f"fsdp:{dims}", checkpoint, None)
    )[0]
    assert found_told == pytest.approx(told, rel=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
        assert (found_weights[name] - weights[name]).abs().max() <= 1e-5 * weights[name].abs().max(), name
