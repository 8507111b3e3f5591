import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.rollout import (
    Completion,
    GenerationConfig,
    GenerationRequest,
    InferenceEngine,
    RolloutConfig,
)
from archon_core.errors import ConfigError, DataError, ModelError, TrainingError
from archon_rollout import decode_weights
from archon_rollout.decode_weights import LEAST_STEPS, transposed_weights
from archon_rollout.local_engine import LocalEngine

PROMPTS = [(3,), (1, 2, 3, 4, 5, 6, 7), (9, 8), (4, 4, 4, 4), (20, 21, 22, 0, 1)]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def letters(ids) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


def request(prompt, seeds=(0,), **options) -> GenerationRequest:
    config = GenerationConfig(n_samples=len(seeds), **{"max_new_tokens": 12, **options})
    return GenerationRequest(tuple(prompt), config, tuple(seeds), letters)


@pytest.fixture(params=[None, 3], ids=["full attention", "sliding window"])
def module(request, tiny):
    return tiny.Decoder(window=request.param)


@pytest.fixture
def make_engine(tiny):
    def make(module, max_batch_size: int = 256, version: int = 0) -> LocalEngine:
        return LocalEngine(RolloutConfig(max_batch_size=max_batch_size), trainer=tiny.Trainer(module, version))

    return make


def greedy_by_full_forwards(tiny, module, prompt, n: int, stop: tuple[int, ...] = ()) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(tiny.full_logits(module, ids)[-1].argmax()))
        if ids[-1] in stop:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("max_batch_size", [1, 2, 256])
def test_greedy_decoding_equals_repeated_full_forward_passes(tiny, module, make_engine, max_batch_size):
    engine = make_engine(module, max_batch_size)
    got = engine.generate([request(prompt, greedy=True, stop_token_ids=[2, 11]) for prompt in PROMPTS])
    expected = [greedy_by_full_forwards(tiny, module, prompt, 12, stop=(2, 11)) for prompt in PROMPTS]
    assert [completions[0].token_ids for completions in got] == expected
    assert len({len(tokens) for tokens in expected}) > 1, "the case must be ragged"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.8, "top_k": 9}, {"greedy": True, "temperature": 0.5}],
    ids=str,
)
def test_logprobs_equal_those_of_a_full_forward_pass(tiny, module, make_engine, dtype, options):
    module.to(dtype)
    requests = [request(prompt, seeds=(1, 2), stop_token_ids=[5], **options) for prompt in PROMPTS]
    temperature = 1.0 if options.get("greedy") else options.get("temperature", 1.0)
    for asked, completions in zip(requests, make_engine(module, 4).generate(requests), strict=True):
        for completion in completions:
            n = len(completion.token_ids)
            logits = tiny.full_logits(module, asked.prompt_ids + completion.token_ids)[-n - 1 : -1]
            expected = (logits / temperature).log_softmax(-1)[range(n), completion.token_ids]
            assert len(completion.logprobs) == len(completion.versions) == n
            assert (torch.tensor(completion.logprobs, dtype=dtype) - expected).abs().max() < TOLERANCE[dtype]


def test_logprobs_are_those_of_the_policy_that_sampled(tiny, module, make_engine):
    """Oracle: a full forward pass, with penalties by counting and without stop tokens up to the minimum."""
    module.double()
    config = {"temperature": 0.7, "frequency_penalty": 1.5, "min_new_tokens": 4, "stop_token_ids": [5, 9], "top_k": 20}
    requests = [request(prompt, seeds=(1, 2, 3), **config) for prompt in PROMPTS]
    repeated = 0
    for asked, completions in zip(requests, make_engine(module, 4).generate(requests), strict=True):
        for completion in completions:
            ids = completion.token_ids
            rows = tiny.full_logits(module, asked.prompt_ids + ids)[-len(ids) - 1 : -1]
            for place, (token, logprob) in enumerate(zip(ids, completion.logprobs, strict=True)):
                logits = [x - 1.5 * ids[:place].count(i) for i, x in enumerate(rows[place].tolist())]
                allowed = [x / 0.7 for i, x in enumerate(logits) if place >= 4 or i not in (5, 9)]
                expected = logits[token] / 0.7 - torch.tensor(allowed, dtype=torch.float64).logsumexp(0)
                assert logprob == pytest.approx(expected.item(), abs=1e-9)
                repeated += token in ids[:place]
    assert repeated, "some token must have a penalty"


def completions_by_seed(requests, results) -> dict[tuple, Completion]:
    return {
        (asked.prompt_ids, seed): completion
        for asked, completions in zip(requests, results, strict=True)
        for seed, completion in zip(asked.seeds, completions, strict=True)
    }


def test_a_completion_does_not_depend_on_the_batch_around_it(module, make_engine):
    # float64, where another batch size cannot move a probability far enough to meet a random number.
    module.double()
    kinds = [
        {"frequency_penalty": 0.5},
        {"temperature": 0.6, "top_p": 0.7},
        {"top_k": 4, "stop": ["cd", "q"]},
        {"greedy": True, "frequency_penalty": -0.5},
        {"min_new_tokens": 5, "stop": ["a"]},
    ]
    requests = [
        request(prompt, seeds=range(100 * i, 100 * i + 3), stop_token_ids=[2, 11, 17], **kind)
        for i, (prompt, kind) in enumerate(zip(PROMPTS, kinds, strict=True))
    ]
    together = completions_by_seed(requests, make_engine(module).generate(requests))
    backwards = [replace(r, seeds=r.seeds[::-1]) for r in reversed(requests)]
    single = [replace(r, config=replace(r.config, n_samples=1), seeds=(seed,)) for r in requests for seed in r.seeds]
    for others, max_batch_size in ((backwards, 4), (single, 256), (single, 1)):
        for key, completion in completions_by_seed(
            others, make_engine(module, max_batch_size).generate(others)
        ).items():
            assert completion.token_ids == together[key].token_ids
            assert completion.logprobs == pytest.approx(together[key].logprobs, abs=1e-9)
    assert len({len(completion.token_ids) for completion in together.values()}) > 3, "the case must be ragged"


def test_seeds_decide_the_sample(module, make_engine):
    [a, b, c] = make_engine(module).generate([request(PROMPTS[1], seeds=(5, 6, 5))])[0]
    assert a == c
    assert a.token_ids != b.token_ids


def test_samples_follow_the_models_distribution(tiny, make_engine):
    module = tiny.Decoder(sharpness=2.0)
    n = 4000
    [completions] = make_engine(module, n).generate([request(PROMPTS[1], seeds=range(n), max_new_tokens=1)])
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=tiny.vocabulary)
    expected = tiny.full_logits(module, PROMPTS[1])[-1].softmax(-1) * n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert expected.min() > 5, "the test's approximation"
    # 22 degrees of freedom: the 99.9% quantile. Seeds are fixed, so this passes always or never.
    assert chi_square < 48.3


def test_successive_tokens_of_a_sample_are_drawn_independently(tiny, make_engine):
    module = tiny.Decoder(sharpness=0.0)  # every token is equally probable
    [completions] = make_engine(module, 2000).generate([request((1,), seeds=range(2000))])
    tokens = torch.tensor([completion.token_ids for completion in completions])
    pairs = torch.bincount((tokens[:, :-1] * tiny.vocabulary + tokens[:, 1:]).flatten(), minlength=tiny.vocabulary**2)
    expected = pairs.sum() / tiny.vocabulary**2
    # 528 degrees of freedom: the 99.9% quantile.
    assert ((pairs - expected) ** 2 / expected).sum() < 634


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_options_that_leave_one_token_give_the_greedy_completion_also_beside_other_options(
    module, make_engine, options
):
    module.double()
    requests = [request(p, seeds=(1,), **options) for p in PROMPTS] + [request(p, temperature=1.5) for p in PROMPTS]
    results = make_engine(module).generate(requests)
    greedy = make_engine(module).generate([request(p, greedy=True) for p in PROMPTS])
    assert [c.token_ids for [c] in results[:5]] == [c.token_ids for [c] in greedy]
    assert [c.token_ids for [c] in results[5:]] != [c.token_ids for [c] in greedy]


@pytest.mark.parametrize("max_batch_size", [2, 3, 7])
def test_samples_of_a_prompt_share_its_prefill_and_wait_when_the_batch_is_full(module, make_engine, max_batch_size):
    requests = [request(prompt, seeds=range(4), stop_token_ids=[2, 11]) for prompt in PROMPTS]
    results = make_engine(module, max_batch_size).generate(requests)
    new_tokens = sum(len(c.token_ids) for completions in results for c in completions)
    prompt_tokens = sum(map(len, PROMPTS))
    # The first token of a sample comes from the prefill; each later one is one row of one decode step.
    assert sum(module.calls) == prompt_tokens + new_tokens - 20
    assert max(module.calls[1:]) <= max(max_batch_size, *map(len, PROMPTS))
    assert [len(completions) for completions in results] == [4] * 5


def test_rows_that_ended_cost_nothing_more(module, make_engine):
    requests = [
        request(prompt, greedy=True, max_new_tokens=n) for prompt, n in zip(PROMPTS, (1, 5, 2, 5, 9), strict=True)
    ]
    make_engine(module).generate(requests)
    assert module.calls == [sum(map(len, PROMPTS)), 4, 3, 3, 3, 1, 1, 1, 1]


def test_free_rows_are_filled_while_others_are_decoded(module, make_engine):
    requests = [request(PROMPTS[0], greedy=True, max_new_tokens=n) for n in (9, 2, 2, 2)]
    make_engine(module, 2).generate(requests)
    # Two prompts, one step, then a prefill of one token and a step of two rows, twice, while the first row goes on.
    assert module.calls == [2, 2, 1, 2, 1, 2, *[1] * 5]


def test_a_stop_token_may_come_first_and_all_rows_may_end_at_once(tiny, module, make_engine):
    first = [greedy_by_full_forwards(tiny, module, prompt, 1)[0] for prompt in PROMPTS]
    results = make_engine(module).generate([request(p, greedy=True, stop_token_ids=first) for p in PROMPTS])
    assert [[(c.token_ids, c.stop_reason) for c in completions] for completions in results] == [
        [((token,), "stop")] for token in first
    ]
    assert len(module.calls) == len(PROMPTS) + 1, "no decode step after the prefill"


def test_limits_end_completions(module, make_engine):
    cases = {(0, None): 0, (1, None): 1, (12, 9): 4, (12, 5): 0, (3, 9): 3}
    requests = [request(PROMPTS[4], greedy=True, max_new_tokens=new, max_tokens=both) for new, both in cases]
    results = [completion for [completion] in make_engine(module).generate(requests)]
    assert [len(completion.token_ids) for completion in results] == list(cases.values())
    assert {completion.stop_reason for completion in results} == {"length"}
    longest = max(results, key=lambda completion: len(completion.token_ids)).token_ids
    assert all(completion.token_ids == longest[: len(completion.token_ids)] for completion in results)


def test_nothing_asked_is_nothing_computed(module, make_engine):
    assert make_engine(module).generate([]) == []
    assert make_engine(module).generate([request(PROMPTS[0], seeds=(1, 2), max_new_tokens=0)]) == [
        [Completion((), (), (), "length")] * 2
    ]
    assert module.calls == []


@pytest.mark.parametrize("requests", [[], [request(PROMPTS[0], max_new_tokens=0)], [request(PROMPTS[0])]])
def test_a_rank_with_nothing_to_generate_gets_its_weights_ready_for_the_others_all_the_same(
    module, tiny, monkeypatch, requests
):
    trainer, entered = tiny.Trainer(module), []

    @contextmanager
    def generating():
        entered.append("enter")
        yield
        entered.append("leave")

    monkeypatch.setattr(trainer, "generating", generating)
    LocalEngine(RolloutConfig(), trainer=trainer).generate(requests)
    assert entered == ["enter", "leave"]


def test_every_token_carries_the_version_of_its_weights(module, make_engine, tiny):
    trainer = tiny.Trainer(module, version=3)
    # An update between the third and the fourth forward pass.
    module.register_forward_hook(lambda *_: setattr(trainer, "version", 3 if len(module.calls) < 3 else 4))
    engine = LocalEngine(RolloutConfig(), trainer=trainer)
    [[completion]] = engine.generate([request(PROMPTS[0], greedy=True, max_new_tokens=5)])
    assert completion.versions == (3, 3, 3, 4, 4)
    assert engine.version == 4


def test_training_goes_on_as_if_nothing_had_been_generated(tiny, make_engine):
    def gradients(generate: bool) -> list[torch.Tensor]:
        module = tiny.Decoder(seed=4)
        module.layers["0"].dropout.eval()
        if generate:
            make_engine(module).generate([request(PROMPTS[1])])
        assert module.training
        assert module.layers["1"].dropout.training
        assert not module.layers["0"].dropout.training
        torch.manual_seed(0)
        packed = PackedSequences.from_lengths((7,), head=HeadInputs(("logits",)))
        module(torch.tensor(PROMPTS[1]), packed)["logits"].logsumexp(-1).sum().backward()
        return [parameter.grad for parameter in module.parameters()]

    for before, after in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(before, after)


def test_weights_that_are_not_finite_are_an_error_and_leave_the_module_in_training(module, make_engine):
    with torch.no_grad():
        module.head.weight[0] = math.nan
    with pytest.raises(TrainingError, match="found NaN or infinity"):
        make_engine(module).generate([request(PROMPTS[0])])
    assert module.training


def test_bad_requests_cost_no_work(module, make_engine):
    with pytest.raises(DataError, match="request 1: found prompt token id 23, allowed are 0 to 22"):
        make_engine(module).generate([request(PROMPTS[0]), request((23,))])
    assert module.calls == []


def test_pausing_refuses_requests_until_resumed(module, make_engine):
    engine: InferenceEngine = make_engine(module)
    assert engine.health()
    engine.pause()
    assert not engine.health()
    with pytest.raises(TrainingError, match=r"paused; call resume\(\)"):
        engine.generate([])
    engine.resume()
    assert engine.health()
    assert len(engine.generate([request(PROMPTS[0])])) == 1
    engine.close()
    assert not engine.health()
    with pytest.raises(TrainingError, match=r"after close\(\); create a new engine"):
        engine.generate([])


def test_updating_weights_checks_that_the_trainer_holds_them(module, make_engine):
    engine = make_engine(module, version=6)
    engine.update_weights(6)
    assert engine.version == 6
    with pytest.raises(TrainingError, match="version 7, but the trainer holds version 6"):
        engine.update_weights(7)


def test_a_pipeline_stage_is_refused(module, make_engine):
    module.head = None
    with pytest.raises(ModelError, match=r"without head.*pass the engine's module"):
        make_engine(module).generate([request(PROMPTS[0])])


def test_a_batch_of_no_rows_is_refused(module, make_engine):
    with pytest.raises(ConfigError, match=r"rollout.max_batch_size: found 0; allowed are numbers from 1"):
        make_engine(module, 0)


def test_long_generations_follow_every_change_of_the_weights_and_leave_them_where_they_were(tiny, module, make_engine):
    engine, n_tokens = make_engine(module), LEAST_STEPS
    asked = request(PROMPTS[1], max_new_tokens=n_tokens, seeds=(1, 2))
    memory = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    for _ in range(2):
        for completion in engine.generate([asked])[0]:
            logits = tiny.full_logits(module, asked.prompt_ids + completion.token_ids)[-n_tokens - 1 : -1]
            expected = logits.log_softmax(-1)[range(n_tokens), completion.token_ids]
            assert (torch.tensor(completion.logprobs) - expected).abs().max() < TOLERANCE[torch.float32]
        assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == memory
        assert all(weight.is_contiguous() for weight in module.parameters())
        with torch.no_grad():
            for weight in module.parameters():
                weight *= 1.1


def test_weights_come_back_after_a_generation_that_failed(module, make_engine):
    module.head.weight.data[0, 0] = math.nan
    memory = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    with pytest.raises(TrainingError, match="NaN"):
        make_engine(module).generate([request(PROMPTS[0], max_new_tokens=LEAST_STEPS)])
    assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == memory


def test_copies_of_weights_end_at_their_limit_of_memory(module, monkeypatch):
    monkeypatch.setattr(decode_weights, "MOST_BYTES", module.layers["0"].attention.qkv.weight.nbytes)
    with transposed_weights(module, LEAST_STEPS):
        assert not module.layers["0"].attention.qkv.weight.is_contiguous()
        assert module.head.weight.is_contiguous()
