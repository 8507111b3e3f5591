"""``rollout.backend=vllm:d1`` from the trainer to the server: starting, publishing, sampling, and wrong weights.

The server has the routes of vLLM 0.32 around a model of transformers.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ConfigError, TrainingError
from archon_rollout.served.engine import ServedEngine
from archon_rollout.served.model_files import write_architecture

sys.path.insert(0, str(Path(__file__).parent))

from model_vllm_server import ModelServer, interpreter
from served_model import logprobs_of, make_trainer, requests, train_step

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def trainer():
    return make_trainer()


@pytest.fixture
def server(trainer, tmp_path):
    with ModelServer(write_architecture(trainer, tmp_path / "model").folder) as started:
        yield started


@pytest.fixture
def engine_of(trainer, tmp_path):
    made = []

    def make(**options):
        config = RolloutConfig(**{"backend": "vllm:d1", "setup_timeout": 10.0, **options})
        made.append(ServedEngine(config, trainer=trainer, folder=tmp_path / "servers"))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def test_a_vllm_server_samples_from_each_published_version(trainer, server, engine_of):
    engine = engine_of(addresses=[server.address])
    for version in range(2):
        metrics = engine.update_weights(version)
        assert metrics["publish/servers"] == 1
        assert server.version == str(version)
        assert engine.last_publication.seconds["canary"] > 0
        asked = requests(max_new_tokens=4)
        for request, samples in zip(asked, engine.generate(asked), strict=True):
            for one in samples:
                assert one.versions == (version,) * len(one.token_ids)
                assert one.logprobs == pytest.approx(logprobs_of(trainer, request, one).tolist(), abs=1e-4)
        train_step(trainer)


def test_weights_that_a_server_loads_wrongly_end_in_the_canary(trainer, server, engine_of):
    engine = engine_of(addresses=[server.address], setup_timeout=1.0)
    engine.update_weights(0)
    train_step(trainer)
    server.spoil = lambda name, tensor: tensor * 1.1 if name.endswith("o_proj.weight") else tensor
    with pytest.raises(TrainingError, match=r"(?s)found 0 .*canary: the log-probability of token \d"):
        engine.update_weights(1)
    assert engine.last_publication.failed[0].phase == "canary"


def test_texts_end_completions_of_servers_that_have_no_tokenizer(trainer, server, engine_of):
    engine = engine_of(addresses=[server.address])
    engine.update_weights(0)
    asked = requests(n_samples=1, max_new_tokens=8)
    whole = engine.generate(asked)
    text = "".join(map(chr, [65 + token for token in whole[0][0].token_ids]))
    stop = replace(asked[0].config, stop=[text[3:5]])
    expected = text.index(text[3:5]) + 2
    decoding = [
        replace(request, config=stop, decode=lambda ids: "".join(chr(65 + i) for i in ids)) for request in asked
    ]
    [one], *_ = engine.generate(decoding)
    assert one.token_ids == whole[0][0].token_ids[:expected]
    assert one.logprobs == pytest.approx(whole[0][0].logprobs[:expected])
    assert one.stop_reason == "stop"
    with pytest.raises(ConfigError, match="found stop texts without a decode function"):
        engine.generate([replace(request, decode=None) for request in decoding])


def test_transports_that_servers_do_not_have_are_refused(trainer, engine_of):
    with pytest.raises(ConfigError, match=r"found ipc; servers of vllm:d1 receive weights by shm, distributed, disk"):
        engine_of(weight_transport="ipc")
    with pytest.raises(ConfigError, match=r"found xccl; servers of vllm:d1t2 receive weights by shm, disk"):
        engine_of(backend="vllm:d1t2", weight_transport="xccl")
    with pytest.raises(ConfigError, match=r"found no vllm server at 127\.0\.0\.1:9"):
        engine_of(addresses=["127.0.0.1:9"])


def started_servers():
    """Processes of stand-ins."""
    found = subprocess.run(["pgrep", "-f", "vllm.entrypoints.cli.main serve"], capture_output=True, text=True)
    return set(found.stdout.split())


def run_folder(tmp_path, *options):
    short = ["actor.backend=archon:d1", "warm_start.steps=2", "trainer.max_steps=3", "trainer.eval_size=4"]
    tiny = ["actor.model_config.num_hidden_layers=1", "actor.model_config.hidden_size=32", "data.batch_size=2"]
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()"]
    command += ["train", "examples/grpo_arithmetic.yaml", "rollout.backend=vllm:d1"]
    command += [f"vllm.python={interpreter(tmp_path)}", f"cluster.fileroot={tmp_path}", "actor.dynamic_sampling=false"]
    return [*command, *short, *tiny, *options], tmp_path / "arithmetic" / "grpo"


@pytest.mark.wide
def test_archon_train_starts_a_vllm_server_trains_on_it_and_ends_it(forks, tmp_path):
    command, folder = run_folder(tmp_path)
    before = started_servers()
    with (tmp_path / "output.txt").open("wb") as output:
        run = forks.popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    assert run.wait(300) == 0, (tmp_path / "output.txt").read_text()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["publish/servers"] for row in rows if "publish/servers" in row] == [1, 1, 1]
    assert "serving" in (folder / "servers" / "server-0.log").read_text()
    decisions = json.loads((folder / "decisions.json").read_text())
    assert "rollout.weight_transport" in {decision["option"] for decision in decisions}
    assert started_servers() == before


@pytest.mark.wide
def test_a_killed_trainer_leaves_no_foreign_server_behind(tmp_path):
    command, _ = run_folder(tmp_path, "trainer.max_steps=1000")
    before = started_servers()
    trainer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (started_servers() - before):
        assert trainer.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    while started_servers() - before:
        assert time.monotonic() < end
        time.sleep(0.1)
