"""transformers' modules in the engine: the same numbers as a model of ours, every option, and every refusal."""

from __future__ import annotations

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError, LayoutError
from archon_engine.models.parameter_names import weight_shapes
from archon_engine.models.weight_conversion import assemble_hf, copy_from
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_testing.batches import deal_unevenly, make_batch
from archon_testing.compiling import compile_without_code
from archon_testing.losses import oracle_loss
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
    config = ArchonEngineConfig(
        backend=backend,
        path=None if path is None else str(path),
        model_config=entries,
        dtype="float32",
        is_critic=critic,
        optimizer=OPTIMIZER,
        mb_spec=MicroBatchSpec(n_mbs=n_mbs),
        archon=ArchonOptions(**{"enable_compile": False, **options}),
    )
    engine = assemble(config, seed=5)
    engine.initialize()
    return engine


def whole_batch(step):
    return make_batch(step, vocab_size=128, longest=512, dtype=torch.float32, seed=1)


def train(engine, steps):
    """Losses and norms of steps on the same batches, whatever the layout."""
    told = []
    for step in steps:
        batch, ranks = whole_batch(step), engine.data_ranks
        stats = engine.train_batch(
            batch.select(deal_unevenly(len(batch), ranks.size)[ranks.rank]), oracle_loss(critic=False)
        )
        told.append((stats.loss, stats.gradient_norm))
    return told


def in_transformers_names(engine, model, tensors):
    """Whole tensors by our names, as transformers calls them."""
    loaded = registry().model_for(engine.hf_config.model_type, model).load()
    arguments = loaded.arguments.from_hf_config(engine.hf_config, critic=False)
    weights = loaded.weight_map(arguments).resolve(weight_shapes(engine.module))
    return {name: assemble_hf(name, weights, copy_from(tensors), torch.float32) for name in weights.hf_shapes}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def one_step(backend, checkpoint, model):
    """One step from a checkpoint: its statistics, and every gradient and weight by transformers' names."""
    engine = make_engine(backend, path=checkpoint, n_mbs=2)
    [told] = train(engine, [0])
    gradients = {name: whole(parameter.grad) for name, parameter in engine.parameters.items()}
    weights = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    return told, *(in_transformers_names(engine, model, tensors) for tensors in (gradients, weights))


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


def test_only_the_prefix_of_a_layout_changes_and_no_number(qwen3):
    checkpoint, (told, gradients, weights) = qwen3
    found_told, found_gradients, found_weights = run_world(one_step, 4, ("fsdp:d2t2", checkpoint, "hf"))[0]
    assert found_told == pytest.approx(told, rel=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
        assert (found_weights[name] - weights[name]).abs().max() <= 1e-5 * weights[name].abs().max(), name


def continue_from(backend, checkpoint, training_state):
    """Two steps, the state between them in ``training_state``: written by the first engine, or read from there."""
    engine = make_engine(backend, path=checkpoint)
    if training_state.exists():
        engine.load(training_state, "dcp")
        return train(engine, [1]), {name: whole(parameter) for name, parameter in engine.parameters.items()}
    train(engine, [0])
    engine.save(training_state, "dcp")
    return train(engine, [1]), {name: whole(parameter) for name, parameter in engine.parameters.items()}


def test_a_training_state_moves_from_data_ranks_to_tensor_ranks(qwen3, tmp_path):
    checkpoint, _ = qwen3
    expected, expected_weights = run_world(continue_from, 2, ("fsdp:d2", checkpoint, tmp_path / "state"))[0]
    found, found_weights = run_world(continue_from, 2, ("fsdp:t2", checkpoint, tmp_path / "state"))[0]
    assert found == [pytest.approx(step, rel=1e-5) for step in expected]
    for name, weight in expected_weights.items():
        assert (found_weights[name] - weight).abs().max() <= 1e-5 * weight.abs().max(), name


def with_options(backend, entries, options):
    graphs = compile_without_code("aot_eager") if options.get("enable_compile") else None
    config = ArchonEngineConfig(
        backend=backend,
        model_config={**SIZES, **entries},
        dtype="float32",
        optimizer=OPTIMIZER,
        gradient_checkpointing=True,
        mb_spec=MicroBatchSpec(n_mbs=2),
        archon=ArchonOptions(**{"model": "hf", "enable_compile": False, **options}),
    )
    layout = parse_layout(backend)
    engine = assemble(config, role="actor", layout=layout, seed=5, total_steps=None, explicit=EXPLICIT)
    engine.initialize()
    told = train(engine, [0, 1])
    assert graphs is None or graphs, "blocks are compiled"
    return told, [decision.option for decision in engine.decisions]


EXPLICIT = frozenset({"actor.archon.enable_compile"})


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("archon:c2", {"ac_mode": "full"}),
        pytest.param("archon:t2", {"enable_compile": True, "ac_mode": "selective"}, marks=pytest.mark.wide),
        ("archon:d2", {"offload_params": True}),
    ],
    ids=["c2 full", "t2 compiled selective", "d2 offloaded"],
)
def test_recomputing_compiling_and_offloading_change_no_number(one_process, backend, options):
    found, _ = run_world(with_options, 2, (backend, MISTRAL, options), time_limit=300)[0]
    assert found == [pytest.approx(step, rel=1e-5) for step in one_process]


MISTRAL = {"model_type": "mistral", "sliding_window": 8}


@pytest.fixture(scope="module")
def one_process():
    return run_world(with_options, 1, ("archon:d1", MISTRAL, {"ac_mode": "none"}))[0][0]


def test_losses_of_routers_that_are_not_applied_are_told():
    entries = {"model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    _, options = run_world(with_options, 1, ("archon:d1", entries, {}))[0]
    assert "actor.model_config.output_router_logits" in options


def test_an_axis_that_a_model_cannot_be_cut_along_is_refused_with_the_reason():
    entries = {**SIZES, "model_type": "mixtral", "num_local_experts": 4}
    with pytest.raises(LayoutError, match=r"found t2; mixtral has stacks of experts .* leave t out"):
        make_engine("fsdp:t2", entries=entries)


def test_the_fsdp_engine_runs_no_other_model_than_transformers():
    entries = load_target(registry().get("model", "qwen3").tiny_config)()
    with pytest.raises(ConfigError, match=r"actor\.archon\.model: found 'qwen3'; engine 'fsdp' runs model 'hf'"):
        make_engine("fsdp:d1", entries=entries, model="qwen3")
    with pytest.raises(LayoutError, match="found pipeline parallelism"):
        make_engine("fsdp:p2", entries=entries)


def test_the_error_for_an_unserved_model_type_names_alternatives():
    with pytest.raises(Exception, match="model type 'mistral'") as raised:
        make_engine("archon:d1", entries={**SIZES, **MISTRAL})
    message = str(raised.value)
    assert "with an fsdp: backend in place of archon:" in message
    assert "actor.archon.model=hf" in message
    assert "archon new model NAME --from-hf CONFIG" in message
    assert "pip install archon-models-hf" not in message, "it is installed"
