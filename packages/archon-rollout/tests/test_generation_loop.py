"""The loop between its steps: requests join, are aborted, and the weights change under running rows."""

import pytest
import torch

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_rollout import decode_rows, generation_loop
from archon_rollout.generation_loop import GenerationLoop
from archon_rollout.requests import samples_of

PROMPTS = [(3,), (1, 2, 3, 4, 5, 6, 7), (9, 8), (4, 4, 4, 4), (20, 21, 22, 0, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def request(prompt, seeds=(0,), **options) -> GenerationRequest:
    return GenerationRequest(
        tuple(prompt), GenerationConfig(n_samples=len(seeds), **{"max_new_tokens": 12, **options}), tuple(seeds)
    )


class Weights:
    """Modules by version; the loop asks for the current version."""

    def __init__(self, tiny, dtype=torch.float64) -> None:
        self.modules = {version: tiny.Decoder(seed=version).to(dtype).eval() for version in (5, 6, 7)}
        self.version = 5

    def loop(self, max_rows: int = 4) -> GenerationLoop:
        module = self.modules[self.version]
        return GenerationLoop(module, device=torch.device("cpu"), max_rows=max_rows, version=lambda: self.version)

    def change(self, loop: GenerationLoop, version: int) -> None:
        self.version = version
        loop.change_weights(self.modules[version])


@pytest.fixture
def weights(tiny):
    return Weights(tiny)


def submit(loop: GenerationLoop, number: int, asked: GenerationRequest, **options) -> None:
    loop.submit(number, asked.prompt_ids, samples_of(number, asked, **options))


def check_logprobs(tiny, modules, asked, completion, tolerance: float) -> None:
    """Every log-probability is that of one forward pass with the weights that the token is labelled with."""
    n, ids = len(completion.token_ids), asked.prompt_ids + completion.token_ids
    for version in set(completion.versions):
        logits = tiny.full_logits(modules[version], ids)[-n - 1 : -1].double() / asked.config.temperature
        expected = logits.log_softmax(-1)[range(n), completion.token_ids]
        for place, label in enumerate(completion.versions):
            if label == version:
                assert abs(completion.logprobs[place] - expected[place]) < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunk", [8192, 9], ids=["one pass", "several passes"])
def test_tokens_on_both_sides_of_an_update_have_the_logprobs_of_their_version(tiny, dtype, chunk, monkeypatch):
    monkeypatch.setattr(generation_loop, "PREFILL_TOKENS", chunk)
    weights = Weights(tiny, dtype)
    loop = weights.loop()
    requests = {i: request(prompt, (i, i + 50), temperature=0.8) for i, prompt in enumerate(PROMPTS)}
    for number, asked in requests.items():
        submit(loop, number, asked)
    finished = []
    for step in range(60):
        finished += loop.step().finished
        if step in (2, 6, 7):
            weights.change(loop, {2: 6, 6: 7, 7: 5}[step])
    assert len(finished) == 10
    for sample, completion in finished:
        check_logprobs(tiny, weights.modules, requests[sample.request], completion, TOLERANCE[dtype])
    seen = {completion.versions for _, completion in finished}
    assert any({5, 6, 7} <= set(versions) for versions in seen), "the case must have tokens on both sides"


def test_requests_that_join_later_get_the_completions_of_a_loop_by_itself(weights):
    requests = [
        request(PROMPTS[0], (1, 2), max_new_tokens=30),
        request(PROMPTS[1], (3,), max_new_tokens=3, stop_token_ids=[1, 2, 3]),
        request(PROMPTS[2], (4, 5, 6), max_new_tokens=20, top_k=3, temperature=0.7),
        request(PROMPTS[3], (7,), greedy=True, min_new_tokens=4, max_new_tokens=50, stop_token_ids=[0]),
    ]
    loop = weights.loop(max_rows=5)
    together = []
    for number, asked in enumerate(requests):
        submit(loop, number, asked)
        for _ in range(3):
            together += loop.step().finished
    together += loop.run()
    assert len(together) == 7
    for sample, completion in together:
        alone = weights.loop()
        submit(alone, 0, requests[sample.request])
        [expected] = [c for s, c in alone.run() if s.number == sample.number]
        assert completion.token_ids == expected.token_ids
        assert completion.stop_reason == expected.stop_reason
        assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-9)


def test_an_aborted_request_returns_the_tokens_it_has_and_the_others_go_on(weights):
    requests = [request(PROMPTS[0], (1, 2)), request(PROMPTS[1], (3, 4)), request(PROMPTS[2], (5,))]
    loop = weights.loop()
    for number, asked in enumerate(requests):
        submit(loop, number, asked)
    whole = {(s.request, s.number): c for s, c in loop.run()}
    for number, asked in enumerate(requests):
        submit(loop, number, asked)
    for _ in range(4):
        loop.step()
    aborted = {(s.request, s.number): c for s, c in loop.abort({0, 2})}
    assert sorted(aborted) == [(0, 0), (0, 1), (2, 0)]
    for key, completion in aborted.items():
        n = len(completion.token_ids)
        assert n == (0 if key == (2, 0) else 5), "request 2 was waiting for a row"
        assert completion.token_ids == whole[key].token_ids[:n]
        assert completion.stop_reason == "abort"
    rest = {(s.request, s.number): c.token_ids for s, c in loop.run()}
    assert rest == {key: whole[key].token_ids for key in ((1, 0), (1, 1))}
    assert loop.abort({0, 1, 2}) == []
    submit(loop, 0, requests[0])
    again = {(s.request, s.number): c.token_ids for s, c in loop.run()}
    assert again == {key: whole[key].token_ids for key in ((0, 0), (0, 1))}, "a number may be used again"


def test_samples_that_stream_report_every_token_in_order(weights):
    loop = weights.loop()
    submit(loop, 0, request(PROMPTS[0], (1, 2)), streams=True)
    submit(loop, 1, request(PROMPTS[1], (3,)))
    tokens: dict[int, list[tuple[int, float]]] = {0: [], 1: []}
    finished = []
    while loop.n_running or loop.n_waiting:
        progress = loop.step()
        finished += progress.finished
        for new in progress.tokens:
            assert new.sample.request == 0
            tokens[new.sample.number].append((new.token_id, new.logprob))
    for sample, completion in finished:
        if sample.request == 0:
            assert tokens[sample.number] == list(zip(completion.token_ids, completion.logprobs, strict=True))


def test_a_step_that_admits_nothing_leaves_requests_in_the_queue(weights):
    loop = weights.loop()
    submit(loop, 0, request(PROMPTS[0]))
    loop.step()
    submit(loop, 1, request(PROMPTS[1]))
    finished = []
    while loop.n_running:
        finished += loop.step(admits=False).finished
    assert [sample.request for sample, _ in finished] == [0]
    assert loop.n_waiting == 1
    assert [sample.request for sample, _ in loop.run()] == [1]


def test_a_loop_that_never_rests_forgets_the_versions_that_no_row_needs(weights, monkeypatch):
    monkeypatch.setattr(decode_rows, "KEPT_STEPS", 10)
    loop = weights.loop()
    lengths = []
    for number in range(25):
        submit(loop, number, request((1,), (number,), max_new_tokens=3, greedy=True))
        lengths += [len(c.versions) for _, c in loop.step().finished]
    assert set(lengths) == {3}
    assert len(loop._rows._step_versions) <= 10
