"""Models with experts beyond what ``archon verify`` compares: options, balancing, moves between layouts, generation.

Numbers are those of one process in float64.
"""

import sys
import types
from dataclasses import replace
from itertools import chain

import pytest
import torch
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import LayoutError
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Rename
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_models_qwen.moe_arguments import QwenMoEArguments
from archon_models_qwen.weight_map import moe_weight_map
from archon_rollout.local_engine import LocalEngine
from archon_testing.compiling import compile_without_code
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

VOCABULARY = 128
CLOSE = 1e-9
"""Sums in another order, in float64."""

LENGTHS = ((4, 9, 1, 6, 3, 2, 8), (1,), (15, 2, 2))
"""Of the sequences of each step; in the second, most ranks have no token."""


def world_size(layout):
    return parse_layout(f"archon:{layout}").world_size


def make_engine(layout, *, n_mbs=1, optimizer="adamw", gradient_checkpointing=False, dtype="float64", **options):
    archon = ArchonOptions(enable_compile=False)
    for name, value in options.items():  # those of the package of experts among them
        setattr(archon, name, value)
    tiny = load_target(registry().get("model", "qwen3_moe").tiny_config)()
    config = ArchonEngineConfig(
        model_config={**tiny, "initializer_range": 0.3},
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        mb_spec=MicroBatchSpec(n_mbs=n_mbs),
        optimizer=OptimizerConfig(type=optimizer, lr=1e-2),
        archon=archon,
    )
    engine = assemble(
        config,
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
        explicit=frozenset(f"actor.archon.{name}" for name in options),
    )
    engine.initialize()
    return engine


def share(engine, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.from_sequences([torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths])
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def whole(tensor):
    with torch.no_grad():
        return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(engine, steps=(0, 1, 2)):
    """What each step tells, on the same batches whatever the layout."""
    told = []
    for step in steps:
        stats = engine.train_batch(share(engine, LENGTHS[step], step), NegativeLogLikelihood())
        told.append({"loss": stats.loss, "norm": stats.gradient_norm, **stats.metrics})
    return told


def gradients_and_weights(engine):
    return {name: (whole(p.grad), whole(p)) for name, p in engine.parameters.items() if p.requires_grad}


def run(layout, options, steps=(0, 1, 2)):
    engine = make_engine(layout, **options)
    told = train(engine, steps)
    found = gradients_and_weights(engine)
    engine.close()
    return told, found


def run_all(layout, options):
    return {name: run(layout, given) for name, given in options.items()}


def assert_equal(ranks, alone):
    """Each rank's numbers are one process's; together they hold every parameter."""
    expected_told, expected = alone
    seen = set()
    for told, found in ranks:
        for step, expected_step in zip(told, expected_told, strict=True):
            assert step == pytest.approx(expected_step, rel=CLOSE, abs=CLOSE)
        for name, pair in found.items():
            seen.add(name)
            for value, other in zip(pair, expected[name], strict=True):
                torch.testing.assert_close(value, other, rtol=0, atol=CLOSE * float(other.abs().max()), msg=name)
    assert seen == expected.keys()


BALANCED = {"moe_aux_loss": "sequence", "moe_aux_loss_coef": 0.1, "moe_z_loss_coef": 0.01}
OPTIONS = {
    "plain": {},
    "balanced": BALANCED,
    "balanced in micro-batches": {**BALANCED, "n_mbs": 3},
    "recomputed": {**BALANCED, "gradient_checkpointing": True, "ac_mode": "full"},
    "recomputed by operation": {**BALANCED, "gradient_checkpointing": True, "ac_mode": "selective"},
    "freed": {"reshard_after_forward_policy": "always"},
    "muon": {"optimizer": "muon"},
}


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        pytest.param("d2e2", OPTIONS, marks=pytest.mark.wide),
        pytest.param(
            "(attn:t2c2|ffn:t2e2)", ("balanced in micro-batches", "recomputed by operation"), marks=pytest.mark.wide
        ),
        ("p2d2e2", ("balanced in micro-batches", "recomputed", "muon")),
    ],
)
def test_no_option_and_no_layout_changes_a_number(layout, names):
    options = {name: {**OPTIONS[name], "pp_schedule": "I1F1B"} for name in names}
    ranks = run_world(run_all, world_size(layout), (layout, options), time_limit=120)
    for name in names:
        given = OPTIONS[name]
        one = {key: value for key, value in given.items() if key not in ("n_mbs", "gradient_checkpointing", "ac_mode")}
        assert_equal([of_rank[name] for of_rank in ranks], run("d1", one))


def test_balancing_acts_on_the_router():
    _, plain = run("d1", {})
    _, balanced = run("d1", BALANCED)
    router = next(name for name in plain if name.endswith("router.weight"))
    assert not torch.allclose(plain[router][0], balanced[router][0], rtol=1e-3)


def recompute(layout):
    """Operations that run again in backward, of all blocks, by mode."""
    found = {}
    for mode in ("selective", "full"):
        engine = make_engine(layout, gradient_checkpointing=True, ac_mode=mode, ac_debug=True)
        train(engine, [0])
        found[mode] = set(chain(*(b.recomputed.operations for b in engine.recomputation.blocks.values())))
        engine.close()
    return found


def test_selective_recomputation_never_sends_a_token_twice():
    for found in run_world(recompute, 2, ("d2e2",)):
        assert "all_to_all_single" in found["full"]
        assert "all_to_all_single" not in found["selective"]
        assert found["selective"], "something is recomputed"


def compiled(layout):
    graphs = compile_without_code("aot_eager")
    steps = (0, 2)  # a single token would need graphs of its own
    eager = run(layout, BALANCED, steps)
    return run(layout, {**BALANCED, "enable_compile": True}, steps), eager, graphs


@pytest.mark.wide
def test_compiled_blocks_route_and_train_as_eager_ones_do():
    for found, eager, graphs in run_world(compiled, 2, ("(attn:t2|ffn:e2)",), time_limit=300):
        assert_equal([found], eager)
        assert any("softmax" in calls for calls in graphs), "routers are compiled"
        assert not any({"topk", "bincount"} & calls for calls in graphs), "what depends on their choices is not"


# Moves: checkpoints know no layout of experts.


def continue_training(layout, folder, source, target, step):
    engine = make_engine(layout, pp_schedule="ZBV")
    if source:
        engine.load(folder / source, "dcp")
    told = train(engine, [step])
    engine.save(folder / target, "dcp")
    engine.save(folder / f"{target}-hf", "hf")
    return told, gradients_and_weights(engine)


@pytest.mark.wide
def test_a_run_moves_between_layouts_of_experts(tmp_path):
    engine = make_engine("d1")
    expected = [(train(engine, [step]), gradients_and_weights(engine)) for step in range(3)]
    ids = torch.arange(12)[None]
    for step, layout in enumerate(["d2e2", "(attn:t4|ffn:t2e2)", "p2d2e2"]):
        source = f"step-{step - 1}" if step else None
        arguments = (layout, tmp_path, source, f"step-{step}", step)
        assert_equal(run_world(continue_training, world_size(layout), arguments, time_limit=120), expected[step])
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "step-2-hf", dtype=torch.float64, experts_implementation="eager"
    )
    batch = Batch.from_sequences([ids[0]])
    ours = engine.forward_batch(batch, OutputRequest(("logits",)))["logits"]
    with torch.no_grad():
        theirs = model(ids).logits[0]
    # transformers rounds the router's scores to fp32, whatever the model's type.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


# Generation: whole experts on every rank, so ranks need not decode in step.


def generate(layout):
    engine = make_engine(layout)
    train(engine, [0])
    rollout = LocalEngine(RolloutConfig(max_batch_size=3), trainer=engine)
    config = GenerationConfig(n_samples=2, max_new_tokens=7, stop_token_ids=[3, 40, 90])
    prompts = [(3, 5, 8, 1), (7,), (100, 2, 2, 9, 11, 4), (1, 2), (9, 9, 9)]
    requests = [GenerationRequest(prompt, config, (2 * i, 2 * i + 1)) for i, prompt in enumerate(prompts)]
    ranks = engine.data_ranks
    places = range(ranks.rank, len(requests), ranks.size)
    gathered = ranks.gather(dict(zip(places, rollout.generate([requests[i] for i in places]), strict=True)))
    return [part[i] for i in range(len(requests)) for part in gathered if i in part], train(engine, [2])


@pytest.mark.parametrize(
    "layout", ["(attn:t2|ffn:e2)", *(pytest.param(wide, marks=pytest.mark.wide) for wide in ("t2", "p2d2e2"))]
)
def test_ranks_generate_their_shares_as_one_process_does(layout):
    expected, after = generate("d1")
    for completions, afterwards in run_world(generate, world_size(layout), (layout,), time_limit=120):
        for found, wanted in zip(chain(*completions), chain(*expected), strict=True):
            assert found.token_ids == wanted.token_ids
            assert found.logprobs == pytest.approx(wanted.logprobs, abs=CLOSE)
        for step, expected_step in zip(afterwards, after, strict=True):
            assert step == pytest.approx(expected_step, rel=CLOSE, abs=CLOSE)


def build(layout):
    with pytest.raises(LayoutError) as refused:
        make_engine(layout)
    return str(refused.value)


def test_more_expert_ranks_than_experts_are_refused_with_the_largest_that_works():
    for message in run_world(build, 3, ("d3e3",)):
        assert "found e = 3, which does not divide the model's 8 (experts)" in message
        assert message.endswith("the largest smaller size that does is 2")


# A bias for choosing is no parameter: it moves by loads, and is part of what a run goes on from.


class BiasedArguments(QwenMoEArguments):
    @classmethod
    def from_hf_config(cls, config, *, critic):
        arguments = super().from_hf_config(config, critic=critic)
        return replace(arguments, moe=replace(arguments.moe, choice_bias=True))


def biased_weights(arguments):
    bias = Rename("model.layers.{layer}.mlp.gate.e_score_correction_bias", "layers.{layer}.moe.router.choice_bias")
    return WeightMap((*moe_weight_map(arguments).rules, bias))


class NotANumber(NegativeLogLikelihood):
    def __call__(self, outputs, micro_batch):
        sums = super().__call__(outputs, micro_batch)
        return replace(sums, terms={unit: term * float("nan") for unit, term in sums.terms.items()})


def train_with_bias(layout, folder):
    """Biases after two steps, in a new engine that loaded them, and in one that loaded the Hugging Face folder."""
    module = types.ModuleType("archon_biased_qwen")
    module.Arguments, module.weights = BiasedArguments, biased_weights
    sys.modules[module.__name__] = module
    spec = replace(
        registry().get("model", "qwen3_moe"),
        name="biased",
        model_types=(),
        arguments="archon_biased_qwen:Arguments",
        weight_map="archon_biased_qwen:weights",
    )
    registry().add(spec)
    options = {"model": "biased", "moe_bias_update_rate": 0.01}
    engine = make_engine(layout, **options)
    assert all(float(bias.abs().max()) == 0.0 for bias in biases(engine).values()), "they begin at zero"
    train(engine, [0, 2])
    moved = biases(engine)
    assert engine.train_batch(share(engine, LENGTHS[0], 0), NotANumber()).skipped
    assert all(torch.equal(bias, moved[name]) for name, bias in biases(engine).items()), "no step, no move"
    engine.save(folder / "dcp", "dcp")
    engine.save(folder / "hf", "hf")
    found = [biases(engine)]
    for format in ("dcp", "hf"):
        fresh = make_engine(layout, **options)
        fresh.load(folder / format, format)
        found.append(biases(fresh))
    return found


def biases(engine):
    return {name: b.clone() for name, b in engine._running.assembled.buffers.items()}


def test_choice_biases_move_by_the_loads_of_all_ranks_and_are_saved(tmp_path):
    [(alone, *loaded_alone)] = run_world(train_with_bias, 1, ("d1", tmp_path / "d1"))
    assert all(float(bias.abs().max()) > 0 for bias in alone.values())
    ranks = run_world(train_with_bias, 4, ("p2d2e2", tmp_path / "run"))
    for trained, *loaded in [(alone, *loaded_alone), *ranks]:
        for again in loaded:
            assert again.keys() == trained.keys()
            assert all(torch.equal(again[name], bias) for name, bias in trained.items())
        assert all(torch.equal(alone[name], bias) for name, bias in trained.items())
    assert {name for trained, *_ in ranks for name in trained} == set(alone)
