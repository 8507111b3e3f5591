"""The driver and the plugin with a real vLLM, which needs minutes to start.

``ARCHON_TEST_VLLM`` names a virtual environment with vLLM 0.32, archon-core and archon-vllm; the README says how to
make one without a GPU. All tests share one server, run in order, and leave new weights.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from publishing import manifest_of, prepare, publish

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ServerError
from archon_core.layout import parse_layout
from archon_core.serving.record import ServerRecord
from archon_core.serving.scores import ScoringRequest
from archon_core.serving.update import UpdatePlan
from archon_vllm.driver import VllmDriver
from archon_vllm.options import VllmOptions

pytestmark = pytest.mark.skipif(
    "ARCHON_TEST_VLLM" not in os.environ, reason="ARCHON_TEST_VLLM names no environment with vLLM"
)

START_SECONDS = 900.0
SECONDS = 120.0
TOLERANCE = 1e-4
"""float32 on the CPU, with another order of additions than transformers; weights of other versions differ by 0.1."""

PROMPT = (5, 6, 7)


@dataclass
class Real:
    """The server, and models that its weights come from."""

    record: ServerRecord
    folder: Path
    config: Any

    def model(self, seed):
        from transformers import Qwen3ForCausalLM

        torch.manual_seed(seed)
        return Qwen3ForCausalLM(self.config).float().eval()


def make_driver(transport="shm", python=""):
    options = VllmOptions(
        python=python,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        block_size=None,
    )
    config = RolloutConfig(weight_transport=transport)
    return VllmDriver(config, options=options, token="secret")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from transformers import Qwen3Config

    folder = tmp_path_factory.mktemp("vllm")
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        dtype="float32",
    )
    started = Real(None, folder, config)
    started.model(0).save_pretrained(folder / "v0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = make_driver(python=str(Path(os.environ["ARCHON_TEST_VLLM"]) / "bin" / "python"))
    layout = parse_layout("vllm:d1")
    launch = driver.launch(str(folder / "v0"), layout=layout, index=0, host="127.0.0.1", port=port)
    outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            launch.command,
            env={**outer, **cpu, "HF_HUB_OFFLINE": "1", **launch.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while (record := driver.ready(f"127.0.0.1:{port}", timeout=SECONDS)) is None:
            assert process.poll() is None, log.read_text(encoding="utf-8")[-5000:]
            assert time.monotonic() < end, log.read_text(encoding="utf-8")[-5000:]
            time.sleep(1)
        started.record = record
        yield started
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def generate(record, n_tokens=8, id="r", driver=None, **config):
    one = GenerationRequest(PROMPT, GenerationConfig(max_new_tokens=n_tokens, **config), seeds=(3,))
    driver = driver or make_driver()
    return asyncio.run(driver.generate(record, one, request_id=id, timeout=SECONDS))[0]


def expected_logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *ids]])).logits[0].double()
    return [float(logits[len(PROMPT) - 1 + n].log_softmax(-1)[token]) for n, token in enumerate(ids)]


def assert_serves(real, seed, version):
    one = generate(real.record)
    assert set(one.versions) == {version}
    assert one.logprobs == pytest.approx(expected_logprobs(real.model(seed), one.token_ids), abs=TOLERANCE)
    other = expected_logprobs(real.model(seed + 100), one.token_ids)
    assert max(abs(a - b) for a, b in zip(one.logprobs, other, strict=True)) > 100 * TOLERANCE
    assert not make_driver().state(real.record, timeout=SECONDS).paused


def test_logprobs_are_those_of_the_model_before_any_publication(real):
    assert_serves(real, 0, -1)
    greedy = generate(real.record, greedy=True)
    assert greedy.logprobs == pytest.approx(expected_logprobs(real.model(0), greedy.token_ids), abs=TOLERANCE)


def test_scores_are_the_models_log_probabilities_of_given_tokens(real):
    asked = ScoringRequest(((5, 6, 7, 300, 2), (9,), tuple(range(1, 400))))
    driver = make_driver("disk")
    record = driver.ready(real.record.address, timeout=SECONDS)
    scores = asyncio.run(driver.score(record, asked, timeout=SECONDS))
    assert (scores.version, driver.describe_model(record, timeout=SECONDS).version) == (-1, -1)
    assert driver.describe_model(record, timeout=SECONDS).name == str(real.folder / "v0")
    with torch.no_grad():
        for ids, found in zip(asked.sequences, scores.logprobs, strict=True):
            logprobs = real.model(0)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
            assert found == pytest.approx(expected, abs=TOLERANCE)


def test_weights_arrive_over_shared_memory(real):
    driver = make_driver()
    prepare(driver, real.record, real.model(1).state_dict(), 1)
    assert_serves(real, 0, -1)
    assert driver.state(real.record, timeout=SECONDS).prepared == 1
    driver.commit_update(real.record, 1, timeout=SECONDS)
    assert_serves(real, 1, 1)


def test_weights_arrive_over_a_process_group(real):
    publish(make_driver("distributed"), real.record, real.model(2).state_dict(), 2, transport="distributed")
    assert_serves(real, 2, 2)


def test_tokens_on_both_sides_of_an_update_are_those_of_their_versions(real):
    driver = make_driver()
    models = {2: real.model(2)}
    for version in range(3, 13):  # the request may have ended before the commit; then try again
        models[version] = real.model(version)
        prepare(driver, real.record, models[version].state_dict(), version)
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(generate, real.record, 500, "long")
            time.sleep(0.3)
            driver.commit_update(real.record, version, timeout=SECONDS)
            one = answer.result()
        assert len(one.token_ids) == 500
        if len(set(one.versions)) == 2:
            break
    old, new = version - 1, version
    assert list(dict.fromkeys(one.versions)) == [old, new]
    expected = {v: expected_logprobs(models[v], one.token_ids) for v in (old, new)}
    assert one.logprobs == pytest.approx([expected[v][n] for n, v in enumerate(one.versions)], abs=TOLERANCE)
    assert_serves(real, version, version)


def test_a_flipped_bit_never_reaches_the_model(real):
    driver, version = make_driver(), make_driver().state(real.record, timeout=SECONDS).version

    def flip(content):
        content[10] ^= 1

    with pytest.raises(ServerError, match="other values"):
        prepare(driver, real.record, real.model(20).state_dict(), 20, spoil=flip)
    with pytest.raises(ServerError):
        driver.commit_update(real.record, 20, timeout=SECONDS)
    assert_serves(real, version, version)


def test_an_aborted_update_is_not_committed_late(real):
    driver, version = make_driver(), make_driver().state(real.record, timeout=SECONDS).version
    prepare(driver, real.record, real.model(21).state_dict(), 21)
    driver.abort_update(real.record, 21, timeout=SECONDS)
    with pytest.raises(ServerError):
        driver.commit_update(real.record, 21, timeout=SECONDS)
    assert_serves(real, version, version)
    publish(driver, real.record, real.model(22).state_dict(), 22)
    assert_serves(real, 22, 22)


def test_requests_are_aborted_with_the_tokens_that_they_have(real):
    driver = make_driver()
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(generate, real.record, 500, "ends", driver)
        time.sleep(0.1)
        driver.pause(real.record, "keep", timeout=SECONDS)
        assert driver.state(real.record, timeout=SECONDS).paused
        assert not answer.done()
        driver.abort(real.record, ["ends"], timeout=SECONDS)
        driver.resume(real.record, timeout=SECONDS)
    assert answer.result().stop_reason == "abort"
    assert len(answer.result().token_ids) < 500


def test_vllm_reads_a_folder_without_the_plugin(real):
    driver = make_driver("disk")
    model = real.model(30)
    model.save_pretrained(real.folder / "v30")
    record = driver.ready(real.record.address, timeout=SECONDS)
    plan = UpdatePlan(manifest_of(model.state_dict(), 30), "disk", {"final": str(real.folder / "v30")})
    driver.begin_update(record, plan, timeout=SECONDS)
    driver.commit_update(record, 30, timeout=SECONDS)
    assert_serves(real, 30, 30)
