"""The local rollout engine on real models: against the trainer's own forward pass, and against transformers."""

import io
import json

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.cli.main import main
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import ModelError
from archon_models_deepseek.tiny_config import tiny_deepseek_v3
from archon_rollout.local_engine import LocalEngine

LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
"""Shares of the largest log-probability: what one rounding of a logit costs grows with the logits."""

WINDOWED = {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 4,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
ONE_KV_HEAD = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": True}
HYBRID = {
    name: value
    for name, value in load_target("archon_models_qwen.tiny_config:tiny_qwen3_5")().items()
    if name not in ("vocab_size", "hidden_size")
}
"""Recurrent layers, whose states decoding carries on."""
YARN = {
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
}


def model_config(**changes):
    # Wide weights, so that a random model has opinions about the next token.
    return {**load_target(registry().get("model", "qwen3").tiny_config)(), "initializer_range": 0.3, **changes}


def make_trainer(dtype="float32", **changes):
    config = EngineConfig(model_config=model_config(**changes), dtype=dtype, optimizer=OptimizerConfig(lr=1e-2))
    trainer = assemble(config, role="actor", layout=parse_layout("archon:d1"), seed=3, total_steps=10)
    trainer.initialize()
    return trainer


def make_requests(trainer, seed=0, n_samples=1, **options):
    generator = torch.Generator().manual_seed(seed)
    vocabulary = trainer.hf_config.vocab_size
    config = GenerationConfig(n_samples=n_samples, **{"max_new_tokens": 16, **options})
    return [
        GenerationRequest(
            tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist()),
            config,
            tuple(range(10 * length, 10 * length + n_samples)),
        )
        for length in (1, 9, 4, 13)
    ]


def completed(requests, results):
    """Every (prompt, completion), flat."""
    return [(r.prompt_ids, c) for r, completions in zip(requests, results, strict=True) for c in completions]


def largest_gap(trainer, pairs, temperature):
    """The largest difference between log-probabilities of completions and of the trainer for the same tokens,
    relative to the largest one."""
    batch = Batch.from_sequences([prompt + completion.token_ids for prompt, completion in pairs])
    expected = trainer.forward_batch(batch, OutputRequest(temperature=temperature))["logprobs"]
    gaps = []
    for sequence, (prompt, completion) in enumerate(pairs):
        start = batch.offsets[sequence] + len(prompt) - 1
        of_trainer = expected[start : start + len(completion.token_ids)].double()
        gaps.append((of_trainer - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max().item())
    return max(gaps) / expected.abs().max().item()


LATENT = {**tiny_deepseek_v3(), "head_dim": 4}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "changes",
    [{}, WINDOWED, ONE_KV_HEAD, YARN, HYBRID, LATENT],
    ids=["qwen3", "windowed", "one kv head", "yarn", "recurrent", "latent"],
)
def test_logprobs_equal_the_trainers(dtype, changes):
    trainer = make_trainer(dtype, **changes)
    for options in ({}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40}):
        requests = make_requests(trainer, n_samples=3, stop_token_ids=[5, 17, 90, 91], **options)
        results = LocalEngine(RolloutConfig(max_batch_size=5), trainer=trainer).generate(requests)
        pairs = completed(requests, results)
        assert len({len(completion.token_ids) for _, completion in pairs}) > 1, "the case must be ragged"
        assert largest_gap(trainer, pairs, options.get("temperature", 1.0)) < TOLERANCE[dtype]


@pytest.mark.parametrize("changes", [{}, WINDOWED, HYBRID], ids=["qwen3", "windowed", "recurrent"])
def test_greedy_completions_are_those_of_transformers(tmp_path, changes):
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(**changes)
    trainer.save(tmp_path, "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    requests = make_requests(trainer, greedy=True, max_new_tokens=24)
    for prompt, completion in completed(requests, LocalEngine(RolloutConfig(), trainer=trainer).generate(requests)):
        output = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0
        )
        assert completion.token_ids == tuple(output[0, len(prompt) :].tolist())


def test_a_completion_does_not_depend_on_the_batch_around_it():
    trainer = make_trainer("float64")
    requests = make_requests(trainer, n_samples=4, stop_token_ids=[5, 17, 90, 91])
    engines = [LocalEngine(RolloutConfig(max_batch_size=size), trainer=trainer) for size in (1, 3, 256)]
    results = [engine.generate(requests) for engine in engines]
    results.append([engines[-1].generate([request])[0] for request in requests])
    for other in results[1:]:
        for (_, first), (_, second) in zip(completed(requests, results[0]), completed(requests, other), strict=True):
            assert first.token_ids == second.token_ids
            assert first.logprobs == pytest.approx(second.logprobs, abs=1e-9)


class Likelihood:
    request = OutputRequest()

    def weights(self, batch):
        return {"sequence": float(len(batch))}

    def __call__(self, outputs, micro_batch):
        return LossSums(terms={"sequence": -outputs["logprobs"].sum()})


def test_after_a_training_step_the_new_weights_are_sampled_under_a_new_version():
    trainer = make_trainer("float64")
    engine = LocalEngine(RolloutConfig(), trainer=trainer)
    requests = make_requests(trainer, greedy=True)
    before = engine.generate(requests)
    trainer.train_batch(Batch.from_sequences([r.prompt_ids * 2 for r in requests]), Likelihood())
    engine.update_weights(1)
    after = engine.generate(requests)
    assert {c.versions for [c] in before} == {(0,) * 16}
    assert {c.versions for [c] in after} == {(1,) * 16}
    assert largest_gap(trainer, completed(requests, after), 1.0) < TOLERANCE["float64"]
    assert [c.token_ids for [c] in before] != [c.token_ids for [c] in after]


def test_generating_changes_no_training_step():
    def losses(generate):
        trainer = make_trainer("float64")
        batch = Batch.from_sequences([r.prompt_ids for r in make_requests(trainer)])
        steps = []
        for _ in range(3):
            if generate:
                LocalEngine(RolloutConfig(), trainer=trainer).generate(make_requests(trainer, n_samples=2))
            steps.append(trainer.train_batch(batch, Likelihood()))
        return [(step.loss, step.gradient_norm) for step in steps]

    assert losses(generate=True) == losses(generate=False)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_kinds_that_depend_on_the_length_generate_up_to_their_threshold_and_are_refused_above(kind):
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 20, **factors}
    trainer = make_trainer(rope_parameters=rope, max_position_embeddings=20 if kind == "dynamic" else 40)
    engine = LocalEngine(RolloutConfig(), trainer=trainer)
    fits = make_requests(trainer, max_tokens=20)
    assert largest_gap(trainer, completed(fits, engine.generate(fits)), 1.0) < TOLERANCE["float32"]
    with pytest.raises(
        ModelError, match=r"request 1: found a prompt of 9 tokens and up to 16 new ones.*allows 20 toge"
    ):
        engine.generate(make_requests(trainer))


@pytest.mark.parametrize("rope", [YARN, LINEAR], ids=["yarn", "linear"])
def test_sequences_end_before_the_models_positions_do_unless_the_rotation_is_stretched(rope):
    requests = make_requests(make_trainer(max_position_embeddings=16), max_new_tokens=16)
    with pytest.raises(
        ModelError, match=r"the model allows 16 together \(max_position_embeddings\); set max_tokens to 16"
    ):
        LocalEngine(RolloutConfig(), trainer=make_trainer(max_position_embeddings=16)).generate(requests)
    stretched = make_trainer(max_position_embeddings=16, **rope)
    pairs = completed(requests, LocalEngine(RolloutConfig(), trainer=stretched).generate(requests))
    assert largest_gap(stretched, pairs, 1.0) < TOLERANCE["float32"]


def test_a_critic_cannot_generate():
    config = EngineConfig(model_config=model_config(), is_critic=True, optimizer=None)
    critic = assemble(config, role="critic", layout=parse_layout("archon:d1"), seed=3, total_steps=None)
    critic.initialize()
    with pytest.raises(ModelError, match="value head"):
        LocalEngine(RolloutConfig(), trainer=critic).generate(make_requests(critic))


def test_the_generate_command_completes_prompts_with_a_saved_model(tmp_path, capsys, monkeypatch):
    from archon_rl.tokenization import characters_tokenizer

    tokenizer = characters_tokenizer(["0123456789+= "])
    trainer = make_trainer("float64", vocab_size=len(tokenizer))
    trainer.save(tmp_path, "hf")
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("12+3=\n4\n"))
    with pytest.raises(SystemExit) as exit_:
        main(["generate", str(tmp_path), "--json", "--greedy", "--max-new-tokens", "6", "--dtype", "float64"])
    assert not exit_.value.code
    described = json.loads(capsys.readouterr().out)
    config = GenerationConfig(greedy=True, max_new_tokens=6, stop_token_ids=[tokenizer.eos_token_id])
    requests = [GenerationRequest(tuple(tokenizer.encode(text)), config, (0,)) for text in ("12+3=", "4")]
    results = LocalEngine(RolloutConfig(), trainer=trainer).generate(requests)
    for [expected], got in zip(results, described, strict=True):
        [completion] = got["completions"]
        assert tuple(completion["token_ids"]) == expected.token_ids
        assert completion["text"] == tokenizer.decode(list(expected.token_ids), skip_special_tokens=True)
        assert completion["logprobs"] == pytest.approx(expected.logprobs, abs=1e-9)
