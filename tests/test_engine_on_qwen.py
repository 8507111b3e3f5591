"""The Archon engine on a real model: checkpoints, resuming, refusals and what it says."""

import gc
import logging
import math
import weakref

import pytest
import torch

from archon_core import ArchonError, assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError, DataError, LayoutError, TrainingError, UnknownNameError, WeightsError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions


class NegativeLogLikelihood:
    request = OutputRequest()

    def __init__(self, factor=1.0):
        self.factor = factor

    def weights(self, batch):
        return {"token": batch.token_fields["mask"].sum()}

    def __call__(self, outputs, micro_batch):
        masked = outputs["logprobs"] * micro_batch.token_fields["mask"]
        return LossSums(terms={"token": -masked.sum() * self.factor})


def model_config(**changes):
    return {**load_target(registry().get("model", "qwen3").tiny_config)(), **changes}


def make_engine(layout="archon:d1", total_steps=10, **options):
    defaults = {"model_config": model_config(), "optimizer": OptimizerConfig(lr=1e-2)}
    config = ArchonEngineConfig(**{**defaults, **options})
    return assemble(config, role="actor", layout=parse_layout(layout), seed=3, total_steps=total_steps)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, model_config()["vocab_size"], (n,), generator=generator) for n in (5, 1, 12)]
    return Batch.from_sequences(rows, {"mask": [torch.tensor([1.0] * (len(r) - 1) + [0.0]) for r in rows]})


@pytest.fixture
def engine():
    engine = make_engine()
    engine.initialize()
    return engine


def weights_of(engine):
    return {name: p.detach().clone() for name, p in engine.parameters.items()}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_engine_goes_on_with_the_same_numbers(tmp_path, batch, optimizer):
    options = {"optimizer": OptimizerConfig(type=optimizer, lr=1e-2, lr_scheduler_type="cosine")}
    straight = make_engine(**options)
    straight.initialize()
    for _ in range(2):
        straight.train_batch(batch, NegativeLogLikelihood())
    straight.save(tmp_path / "state", "dcp")
    resumed = make_engine(**options)
    resumed.initialize()
    resumed.load(tmp_path / "state", "dcp")
    assert resumed.version == 2
    assert_equal_weights(weights_of(resumed), weights_of(straight))
    for _ in range(2):
        expected = straight.train_batch(batch, NegativeLogLikelihood())
        assert resumed.train_batch(batch, NegativeLogLikelihood()) == expected
    assert_equal_weights(weights_of(resumed), weights_of(straight))


def test_a_step_moves_the_weights_by_the_scheduled_rate_times_the_clipped_gradient(batch):
    options = OptimizerConfig(
        type="sgd", lr=0.5, beta1=0.0, weight_decay=0.0, gradient_clipping=0.1, lr_scheduler_type="linear"
    )
    engine = make_engine(total_steps=3, dtype="float64", optimizer=options)
    engine.initialize()
    for rate in (0.5, 0.25, 0.0):
        before = weights_of(engine)
        stats = engine.train_batch(batch, NegativeLogLikelihood())
        moved = math.hypot(*((w - before[name]).norm() for name, w in weights_of(engine).items()))
        assert stats.gradient_norm > 0.1
        assert stats.learning_rate == rate
        assert moved == pytest.approx(rate * 0.1, rel=1e-9)


def test_a_closed_engine_keeps_no_module(engine):
    module = weakref.ref(engine.module)
    engine.close()
    gc.collect()
    assert module() is None


def test_a_training_state_of_another_model_is_refused_with_every_difference(tmp_path, engine):
    engine.save(tmp_path / "state", "dcp")
    other = make_engine(model_config=model_config(num_hidden_layers=1, intermediate_size=8))
    other.initialize()
    with pytest.raises(
        WeightsError, match=r"(?s)layers\.0\.mlp\.gate_proj\.weight: found .* the model has .*unexpected"
    ):
        other.load(tmp_path / "state", "dcp")


def test_a_folder_without_a_training_state_is_refused(tmp_path, engine):
    with pytest.raises(WeightsError, match="found none, or an incomplete one"):
        engine.load(tmp_path, "dcp")


def test_an_exported_model_loads_in_transformers_with_the_same_log_probabilities(tmp_path, engine, batch):
    from transformers import AutoModelForCausalLM

    engine.train_batch(batch, NegativeLogLikelihood())
    engine.save(tmp_path / "hf", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ours = engine.forward_batch(batch, OutputRequest())["logprobs"]
    for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
        ids = batch.input_ids[start:end]
        logprobs = torch.log_softmax(theirs(ids[None]).logits[0], -1)
        expected = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
        torch.testing.assert_close(ours[start : end - 1], expected, rtol=0, atol=1e-5)
        assert ours[end - 1] == 0


def test_an_exported_model_is_loaded_again_bit_by_bit(tmp_path, engine):
    engine.save(tmp_path / "hf", "hf")
    again = make_engine(model_config=None, path=str(tmp_path / "hf"))
    again.initialize()
    assert_equal_weights(weights_of(again), weights_of(engine))


def test_strict_refuses_a_padding_that_the_layout_changes_before_anything_is_built():
    strict = ArchonOptions(strict=True, enable_compile=False)
    # One process is too few for t4, which would be noticed next.
    with pytest.raises(ConfigError, match=r"(?s)strict: found true.*actor\.batch_align_to: found 6, would use 12"):
        make_engine("archon:t4", batch_align_to=6, archon=strict).initialize()


def test_a_critic_starts_from_a_language_model_and_says_that_its_head_is_new(tmp_path, engine, batch):
    engine.save(tmp_path / "hf", "hf")
    critics = [make_engine(model_config=None, path=str(tmp_path / "hf"), is_critic=True) for _ in range(2)]
    for critic in critics:
        critic.initialize()
    assert_equal_weights(weights_of(critics[0]), weights_of(critics[1]))
    assert critics[0].parameters["head.weight"].shape[0] == 1
    assert critics[0].parameters["head.weight"].std() > 0
    [decision] = [d for d in critics[0].decisions if d.option == "actor.path"]
    assert "head.weight" in decision.requested
    values = critics[0].forward_batch(batch, OutputRequest(("values",)))["values"]
    assert values.shape == (batch.n_tokens,)
    strict = ArchonOptions(enable_compile=False, strict=True)
    with pytest.raises(
        ConfigError, match=r"(?s)strict: found true, and settings that.*actor\.path: found head\.weight"
    ):
        make_engine(model_config=None, path=str(tmp_path / "hf"), is_critic=True, archon=strict).initialize()


def test_random_weights_depend_on_the_seed_alone(engine):
    same = make_engine()
    same.initialize()
    assert_equal_weights(weights_of(engine), weights_of(same))
    other = assemble(
        ArchonEngineConfig(model_config=model_config()),
        role="actor",
        layout=parse_layout("archon:d1"),
        seed=4,
        total_steps=1,
    )
    other.initialize()
    assert not torch.equal(other.parameters["embed.weight"], engine.parameters["embed.weight"])


def test_a_gradient_that_is_not_finite_skips_the_update_and_says_so(engine, batch):
    before = weights_of(engine)
    stats = engine.train_batch(batch, NegativeLogLikelihood(factor=math.inf))
    assert stats.skipped
    assert not math.isfinite(stats.gradient_norm)
    assert_equal_weights(weights_of(engine), before)
    assert not engine.train_batch(batch, NegativeLogLikelihood()).skipped


def test_a_batch_without_trained_tokens_is_an_error(engine, batch):
    empty = batch.with_fields({"mask": torch.zeros(batch.n_tokens)})
    with pytest.raises(DataError, match=r"loss weight of unit 'token': found 0\.0"):
        engine.train_batch(empty, NegativeLogLikelihood())


def test_a_loss_that_uses_an_undeclared_unit_is_an_error(engine, batch):
    class Undeclared(NegativeLogLikelihood):
        def weights(self, batch):
            return {"sequence": 3.0}

    with pytest.raises(DataError, match=r"Undeclared: found sums in units \['token'\].*declare \['sequence'\]"):
        engine.train_batch(batch, Undeclared())


def test_the_log_says_which_parallel_dims_were_initialised(caplog):
    with caplog.at_level(logging.INFO, logger="archon_engine"):
        make_engine().initialize()
    assert "Initialized Archon engine with parallel dims: pp=1, dp_shard=1, tp=1, cp=1, ep=1, etp=1" in caplog.messages


def test_an_axis_that_the_model_does_not_have_is_refused_by_name():
    with pytest.raises(LayoutError, match=r"found e2; model 'qwen3' does not support ep"):
        make_engine("archon:d2e2").initialize()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model_config": None}, ConfigError, r"actor\.path and actor\.model_config: found neither"),
        ({"path": "somewhere"}, ConfigError, "found both; exactly one must be set"),
        ({"model_config": model_config(model_type="llama")}, UnknownNameError, "llama"),
        ({"archon": ArchonOptions(attn_type="varlen")}, ConfigError, "it needs a CUDA device, found cpu"),
        (
            {"model_config": model_config(attention_dropout=0.1), "disable_dropout": False},
            ConfigError,
            r"actor\.disable_dropout: found false with attention_dropout 0\.1",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(options, error, message):
    with pytest.raises(error, match=message):
        make_engine(**options).initialize()


def test_an_engine_that_is_not_initialised_or_has_no_optimizer_says_so(batch):
    engine = make_engine(optimizer=None)
    with pytest.raises(TrainingError, match=r"call initialize\(\) first"):
        engine.forward_batch(batch, OutputRequest())
    engine.initialize()
    with pytest.raises(TrainingError, match=r"set actor\.optimizer"):
        engine.train_batch(batch, NegativeLogLikelihood())
    assert not any(p.requires_grad for p in engine.parameters.values())
    with pytest.raises(ArchonError):
        make_engine(optimizer=None).save("nowhere", "hf")
