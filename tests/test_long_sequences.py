"""Sequences beyond 128 tokens on every axis: log-probabilities of transformers, and the step of one process.

Tiles of kernels and parts of context ranks often end at 64 or 128 tokens, which short sequences never reach.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.spec import load_target
from archon_engine.models.hf_config import load_hf_config
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

LENGTHS = (150, 3, 131, 1)
VOCABULARY = 128


def make_engine(model, layout, path=None, n_layers=2):
    tiny = load_target(registry().get("model", model).tiny_config)()
    config = {**tiny, "initializer_range": 0.3, "num_hidden_layers": n_layers}
    dims, _, schedule = layout.partition("-")
    engine = assemble(
        ArchonEngineConfig(
            **({"model_config": config} if path is None else {"path": str(path)}),
            dtype="float64",
            mb_spec=MicroBatchSpec(n_mbs=1),
            optimizer=OptimizerConfig(lr=1e-2),
            archon=ArchonOptions(enable_compile=False, **({"pp_schedule": schedule} if schedule else {})),
        ),
        role="actor",
        layout=parse_layout(f"archon:{dims}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def sequences():
    generator = torch.Generator().manual_seed(7)
    return Batch.from_sequences([torch.randint(0, VOCABULARY, (n,), generator=generator) for n in LENGTHS])


def share(engine, batch):
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def numbers(model, layout, path=None):
    """Log-probabilities of this rank's sequences, by their number, and every parameter after a step."""
    engine, batch = make_engine(model, layout, path), sequences()
    own = share(engine, batch)
    logprobs = engine.forward_batch(own, OutputRequest())["logprobs"].split(own.lengths)
    engine.train_batch(own, NegativeLogLikelihood())
    places = range(engine.data_ranks.rank, len(batch), engine.data_ranks.size)
    weights = {
        name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().clone()
        for name, weight in engine.parameters.items()
    }
    return dict(zip(places, logprobs, strict=True)), weights


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of a model: its checkpoint, transformers' log-probabilities by sequence, and weights after one process's step."""
    found = {}

    def of(model, n_layers):
        if (model, n_layers) not in found:
            folder = tmp_path_factory.mktemp(model) / "checkpoint"
            make_engine(model, "d1", n_layers=n_layers).save(folder, "hf")
            theirs = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
            )
            logprobs = []
            for ids in sequences().input_ids.split(LENGTHS):
                with torch.no_grad():
                    scores = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
                logprobs.append(scores.gather(1, ids[1:, None])[:, 0])
            found[model, n_layers] = folder, logprobs, numbers(model, "d1", folder)[1]
        return found[model, n_layers]

    return of


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("qwen3", "d2"),
        ("qwen3", "r2"),
        ("qwen3", "t2"),
        ("qwen3", "c2"),
        ("qwen3", "p2-1F1B"),
        ("qwen3_moe", "d2e2"),
    ],
)
def test_every_axis_takes_sequences_beyond_128_tokens(expected, model, layout):
    folder, logprobs, weights = expected(model, 4 if "p2" in layout else 2)
    for found, moved in run_world(numbers, 2, (model, layout, folder)):
        for number, values in found.items():
            # transformers rounds norms and rotations to float32.
            torch.testing.assert_close(values[: len(values) - 1], logprobs[number], rtol=0, atol=1e-4)
        for name, weight in moved.items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-9, msg=name)


def test_the_configuration_takes_that_many_tokens():
    for model in ("qwen3", "qwen3_moe"):
        config = load_hf_config(load_target(registry().get("model", model).tiny_config)())
        assert config.max_position_embeddings > max(LENGTHS) > 128
