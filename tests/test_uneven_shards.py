"""Sizes that tensor ranks do not divide: vocabularies of any number of rows, key heads fewer than ranks or no multiple
of them. Numbers and files equal those of one process in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.parallel.shards import own_box, whole_values
from archon_rollout.local_engine import LocalEngine
from archon_testing.compiling import compile_without_code
from archon_testing.worlds import run_world

CLOSE = 1e-9
LENGTHS = ((4, 150, 1, 6, 3), (9, 2, 33, 1, 2, 7), (1, 18, 5))
"""Of the sequences of each step."""


@dataclass(frozen=True)
class Model:
    """A small model.

    Attributes:
        family: whose configuration for tests it changes.
        changes: to that configuration.
        options: of the engine.
    """

    family: str
    changes: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "one key head": Model("qwen3", {"vocab_size": 257, "num_key_value_heads": 1}),
    "tied, two key heads, biases": Model(
        "qwen2", {"vocab_size": 61, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ),
    # 1 row on the last rank.
    "few rows": Model("qwen3", {"vocab_size": 13, "num_key_value_heads": 2}, {"optimizer": "muon"}),
    "four layers, tied": Model(
        "qwen3", {"vocab_size": 61, "num_key_value_heads": 1, "tie_word_embeddings": True, "num_hidden_layers": 4}
    ),
    "critic": Model("qwen3", {"vocab_size": 101, "num_key_value_heads": 1}, {"is_critic": True}),
    # Of twelve queries over six keys, the four ranks read heads 0 0 1, 1 2 2, 3 3 4 and 4 5 5.
    "six of twelve heads": Model(
        "qwen3",
        {"vocab_size": 7, "num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 36},
        {"optimizer": "muon"},
    ),
    "three of twelve heads": Model(
        "qwen2", {"vocab_size": 101, "num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 48}
    ),
    "experts": Model("qwen3_moe", {"vocab_size": 101, "num_key_value_heads": 1}),
}
CHECKPOINTED = {"gradient_checkpointing": True, "ac_mode": "full"}
SELECTIVE = {"gradient_checkpointing": True, "ac_mode": "selective"}
COMPILED = {"enable_compile": True, **SELECTIVE}

CASES_OF_FOUR = (
    ("t4", "one key head", CHECKPOINTED),
    ("t4", "six of twelve heads", {}),
    ("c2t2", "one key head", {}),
    ("p2t2", "tied, two key heads, biases", {"pp_schedule": "1F1B"}),
    ("(attn:t4|ffn:e4)", "experts", {}),
)
CASES_OF_TWO = (("t2", "critic", {}), ("t2", "one key head", SELECTIVE))
WIDE = (
    ("t4", "few rows", {}),
    ("t4", "three of twelve heads", {}),
    ("d2t2", "tied, two key heads, biases", {}),
    ("d2t2", "few rows", {}),
    ("d2t2", "critic", {}),
    ("c2t2", "six of twelve heads", {}),
    ("c2t2", "three of twelve heads", CHECKPOINTED),
    ("c2t2", "few rows", COMPILED),
    ("r2t2", "tied, two key heads, biases", {}),
    ("p2t2", "experts", {"pp_schedule": "1F1B"}),
    ("p2t2", "few rows", {"pp_schedule": "1F1B"}),
    ("p2t2", "four layers, tied", {"pp_schedule": "ZBVZeroBubble"}),
    ("(attn:c2t2|ffn:e2)", "experts", {}),
)
"""With CASES_OF_FOUR, each of d, c and p beside t meets unequal or copied key heads, few rows, and a critic or
experts."""
WIDE_OF_EIGHT = (
    ("d4t2", "one key head", {}),
    ("p2t4", "four layers, tied", {"pp_schedule": "ZBVZeroBubble"}),
    ("c2t4", "tied, two key heads, biases", {}),
    ("t8", "one key head", {}),
)


def make_engine(layout, name, *, path=None, enable_compile=False, **changes):
    model = MODELS[name]
    options = {**model.options, **changes}
    archon = {key: options.pop(key) for key in ("ac_mode", "pp_schedule") if key in options}
    tiny = load_target(registry().get("model", model.family).tiny_config)()
    config = {**tiny, "num_hidden_layers": 2, "initializer_range": 0.3, **model.changes}
    engine = assemble(
        ArchonEngineConfig(
            **{
                "path": None if path is None else str(path),
                "model_config": config if path is None else None,
                "dtype": "float64",
                "optimizer": OptimizerConfig(type=options.pop("optimizer", "adamw"), lr=1e-2),
                "mb_spec": MicroBatchSpec(n_mbs=2),
                "archon": ArchonOptions(enable_compile=enable_compile, **archon),
                **options,
            }
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
        explicit=frozenset({"actor.archon.enable_compile"}),
    )
    engine.initialize()
    return engine


class LogLikelihoodAndEntropy:
    """Of every token; or the squared error of a critic's values."""

    def __init__(self, critic):
        self.critic = critic
        self.request = OutputRequest(("values",) if critic else ("logprobs", "entropy"), temperature=0.8)

    def weights(self, batch):
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs, micro_batch):
        if self.critic:
            return LossSums({"token": (outputs["values"] - 2).square().sum()})
        return LossSums({"token": (0.3 * outputs["entropy"] - outputs["logprobs"]).sum()})


def batch_of(step, engine):
    generator = torch.Generator().manual_seed(step)
    rows = engine.hf_config.vocab_size
    batch = Batch.from_sequences([torch.randint(0, rows, (n,), generator=generator) for n in LENGTHS[step]])
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def train(engine, name, steps=(0, 1, 2)):
    loss = LogLikelihoodAndEntropy(MODELS[name].options.get("is_critic", False))
    told = []
    for step in steps:
        stats = engine.train_batch(batch_of(step, engine), loss)
        told.append((stats.loss, stats.gradient_norm))
    return told


def whole(engine):
    return {name: whole_values(parameter) for name, parameter in engine.parameters.items()}


def numbers(layout, name, options):
    """Loss and norm of each step, the last gradients, and the weights after it."""
    compiled = compile_without_code("aot_eager") if options.get("enable_compile") else None
    engine = make_engine(layout, name, **options)
    told = train(engine, name)
    gradients = {n: whole_values(p.grad) for n, p in engine.parameters.items()}
    weights = whole(engine)
    engine.close()
    assert compiled is None or compiled
    return told, gradients, weights


def far_off(found, expected):
    """Tensor -> relative error, where that is too large."""
    errors = {name: float((found[name] - right).abs().max() / right.abs().max()) for name, right in expected.items()}
    return {name: error for name, error in errors.items() if not error <= CLOSE}


def write_expected(folder, cases):
    for name in {name for _, name, _ in cases}:
        torch.save(numbers("d1", name, {}), folder / f"{name}.pt")


def compare(folder, layout, name, options):
    """What this rank finds wrong, and the parameters that it holds parts of."""
    expected = torch.load(folder / f"{name}.pt")
    found = numbers(layout, name, options)
    problems = []
    for step, (these, those) in enumerate(zip(found[0], expected[0], strict=True)):
        problems += [f"step {step}: {these}, not {those}"] * (these != pytest.approx(those, rel=CLOSE))
    for what, these, those in zip(("gradients", "weights"), found[1:], expected[1:], strict=True):
        if far := far_off(these, {weight: tensor for weight, tensor in those.items() if weight in these}):
            problems.append(f"{what}: {far}")
    return problems, set(found[2])


def compare_all(folder, cases):
    return [compare(folder, *case) for case in cases]


def assert_right(ranks, cases, folder):
    for number, case in enumerate(cases):
        expected = torch.load(folder / f"{case[1]}.pt")[2]
        assert [problem for rank in ranks for problem in rank[number][0]] == [], case
        held = set().union(*(rank[number][1] for rank in ranks))
        assert held >= set(expected), case
        # The other end of a tie, in a pipeline.
        assert held - set(expected) <= {"head.weight"}, case


def generate(engine):
    """Completions of prompts, each with log-probabilities."""
    rollout = LocalEngine(RolloutConfig(max_batch_size=3), trainer=engine)
    config = GenerationConfig(n_samples=2, max_new_tokens=7, stop_token_ids=[3])
    prompts = [(1, 7, 200), (5,), tuple(range(250, 257))]
    requests = [GenerationRequest(prompt, config, (2 * i, 2 * i + 1)) for i, prompt in enumerate(prompts)]
    return [(c.token_ids, c.logprobs) for c in chain(*rollout.generate(requests))]


MOVED = "one key head"
"""The model that moves between layouts, is exported, and generates."""


def begin_on_four(folder):
    """A first step on t4, saved; an export of the weights before it; what they generate, and their likelihoods."""
    engine = make_engine("t4", MOVED)
    engine.save(folder / "exported", "hf")
    generated = generate(engine)
    logprobs = engine.forward_batch(batch_of(0, engine), OutputRequest())["logprobs"]
    boxes = [own_box(engine.parameters[name]).shape for name in ("embed.weight", "layers.0.attention.k_proj.weight")]
    told = train(engine, MOVED, [0])
    engine.save(folder / "after 1", "dcp")
    engine.close()
    again = make_engine("t4", MOVED, path=folder / "exported")
    again_generated = generate(again)
    again.close()
    return generated, again_generated, logprobs.clone(), boxes, told


def on_four(folder, cases):
    return compare_all(folder, cases), begin_on_four(folder)


def on_two(folder, cases):
    """The cases; and the last step of the run that began on four ranks and went on with one."""
    compared = compare_all(folder, cases)
    engine = make_engine("t2", MOVED)
    engine.load(folder / "after 2", "dcp")
    told = train(engine, MOVED, [2])
    return compared, (told, whole(engine))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("uneven")
    write_expected(made, (*CASES_OF_FOUR, *CASES_OF_TWO))
    return made


@pytest.fixture(scope="module")
def four(folder):
    return run_world(on_four, 4, (folder, CASES_OF_FOUR), time_limit=300)


def test_four_ranks_train_any_vocabulary_and_any_key_heads_as_one_process_does(four, folder):
    assert_right([compared for compared, _ in four], CASES_OF_FOUR, folder)


def test_parts_are_unequal_and_no_rank_holds_padding(four):
    boxes = [begun[3] for _, begun in four]
    assert [embed for embed, _ in boxes] == [(65, 32), (65, 32), (65, 32), (62, 32)]
    assert [k_proj for _, k_proj in boxes] == [(2, 32)] * 4  # of the one head of 8


def test_exports_hold_the_true_sizes_and_are_the_files_of_one_process(four, folder):
    make_engine("d1", MOVED).save(folder / "of one process", "hf")
    written = folder / "exported" / "model.safetensors"
    assert written.read_bytes() == (folder / "of one process" / "model.safetensors").read_bytes()
    with safe_open(written, "pt") as file:
        assert file.get_slice("lm_head.weight").get_shape() == [257, 32]
        assert file.get_slice("model.layers.0.self_attn.k_proj.weight").get_shape() == [8, 32]


def test_likelihoods_are_those_that_transformers_computes_from_the_export(four, folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float64)
    batch = batch_of(0, make_engine("d1", MOVED))
    for _, (_, _, logprobs, _, _) in four:
        for found, ids in zip(logprobs.split(batch.lengths), batch.input_ids.split(batch.lengths), strict=True):
            with torch.no_grad():
                expected = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            # transformers rotates and normalises in float32.
            torch.testing.assert_close(found[:-1], expected, rtol=0, atol=1e-5)


def test_tensor_ranks_generate_what_one_process_does(four):
    expected = generate(make_engine("d1", MOVED))
    for _, (generated, again, *_) in four:
        for completions in (generated, again):
            assert [tokens for tokens, _ in completions] == [tokens for tokens, _ in expected]
            for (_, found), (_, wanted) in zip(completions, expected, strict=True):
                assert found == pytest.approx(wanted, abs=CLOSE)


def test_two_ranks_do_too_and_a_run_moves_from_four_ranks_to_one_to_two(four, folder):
    engine = make_engine("d1", MOVED)
    engine.load(folder / "after 1", "dcp")
    told = train(engine, MOVED, [1])
    engine.save(folder / "after 2", "dcp")
    ranks = run_world(on_two, 2, (folder, CASES_OF_TWO), time_limit=300)
    assert_right([compared for compared, _ in ranks], CASES_OF_TWO, folder)
    expected_told, _, expected = torch.load(folder / f"{MOVED}.pt")
    for (_, begun), (_, (last, weights)) in zip(four, ranks, strict=False):
        assert [*begun[4], *told, *last] == [pytest.approx(step, rel=CLOSE) for step in expected_told]
        assert far_off(weights, expected) == {}


@pytest.mark.wide
@pytest.mark.parametrize(("n_ranks", "cases"), [(4, WIDE), (8, WIDE_OF_EIGHT)], ids=["4 ranks", "8 ranks"])
def test_every_product_of_axes_does(tmp_path, n_ranks, cases):
    write_expected(tmp_path, cases)
    assert_right(run_world(compare_all, n_ranks, (tmp_path, cases), time_limit=1800), cases, tmp_path)
