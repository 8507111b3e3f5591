"""Servers as processes: ``rollout.backend=served`` against the local engine and the trainer, and ``archon serve``."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from archon_core import assemble
from archon_core.cli.main import main
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ServerError, TrainingError
from archon_core.serving.scores import ScoringRequest
from archon_rl.tokenization import characters_tokenizer
from archon_rollout.local_engine import LocalEngine
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.served.engine import ServedEngine
from archon_testing.fork_server import ForkServer, starting_by_forks
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from served_model import compare_with_local, logprobs_of, make_trainer, requests, train_step


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A zombie has ended; whoever adopted it may be slow to collect it.
        return open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition, seconds=60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("backend", "transport"),
    [
        ("served:d1", "shm"),
        pytest.param("served:d1", "disk", marks=pytest.mark.wide),
        pytest.param("served:d1", "distributed", marks=pytest.mark.wide),
        pytest.param("served:d1t2", "shm", marks=pytest.mark.wide),
    ],
)
def test_a_served_engine_samples_what_the_local_one_does_also_across_an_update(backend, transport, tmp_path, request):
    if (backend, transport) != ("served:d1", "shm"):  # one server is a real process
        request.getfixturevalue("by_forks")
    trainer = make_trainer()
    config = RolloutConfig(backend=backend, weight_transport=transport)
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path / "servers")
    try:
        with pytest.raises(TrainingError, match="no update_weights"):
            engine.generate(requests())
        assert engine._publisher._options.canary.vocab_size == trainer.hf_config.vocab_size
        engine.update_weights(trainer.version)
        compare_with_local(engine, trainer)
        assert engine.generate([]) == []
        driver, [server] = engine._driver, engine.topology.members.values()
        scores = asyncio.run(driver.score(server, ScoringRequest(((3, 1, 4, 1), (5, 9)), 0.7), timeout=60))
        batch = Batch.from_sequences([[3, 1, 4, 1], [5, 9]])
        outputs = trainer.forward_batch(batch, OutputRequest(("logprobs",), 0.7))["logprobs"]
        assert [*scores.logprobs[0], 0, *scores.logprobs[1], 0] == pytest.approx(outputs.tolist(), abs=1e-5)

        trainer.save(tmp_path / "before", "hf")
        train_step(trainer)
        with pytest.raises(TrainingError, match="holds version 1"):
            engine.update_weights(0)
        [long] = requests(n_samples=4, max_new_tokens=100)[1:2]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(asyncio.run, driver.generate(server, long, request_id="long", timeout=60))
            wait_until(lambda: driver.state(server, timeout=10).running)
            engine.update_weights(trainer.version)
            completions = running.result(60)
        before = assemble(EngineConfig(path=str(tmp_path / "before"), dtype="float32", optimizer=None))
        before.initialize()
        expected = {0: before, 1: trainer}
        for completion in completions:
            found = torch.tensor(completion.logprobs)
            for version, holder in expected.items():
                mine = torch.tensor(completion.versions) == version
                assert (logprobs_of(holder, long, completion) - found)[mine].abs().max() < 1e-5
        compare_with_local(engine, trainer)
        pids = [started.process.pid for started in engine._processes._processes]
    finally:
        engine.close()
    assert not any(map(is_alive, pids))
    log = (tmp_path / "servers" / "server-0.log").read_text(encoding="utf-8")
    assert "weights: version 0 -> 1" in log
    assert log.rstrip().endswith("ended")


@pytest.mark.usefixtures("by_forks")
@pytest.mark.parametrize(
    ("model", "transport"),
    [
        ("qwen3", "shm"),
        pytest.param("qwen3_moe", "shm", marks=pytest.mark.wide),
        pytest.param("qwen3", "disk", marks=pytest.mark.wide),
    ],
)
def test_adapters_reach_servers_apart_from_the_weights_that_they_adapt(model, transport, tmp_path):
    trainer = make_trainer(model, lora={"use_lora": True, "lora_rank": 3, "target_modules": ["all-linear"]})
    config = RolloutConfig(
        backend="served:d1", weight_transport=transport, use_lora=True, newcomer_weights="publication"
    )
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path / "servers")
    try:
        engine.update_weights(trainer.version)
        first = engine.last_publication
        compare_with_local(engine, trainer)
        for _ in range(2):
            train_step(trainer)
            engine.update_weights(trainer.version)
            compare_with_local(engine, trainer)
        adapters = sum(
            entry.n_bytes for entry in trainer.weight_manifest().tensors if entry.name.startswith("base_model.")
        )
        # Adapters of experts without a token do not change, so servers keep them.
        assert 0.9 * adapters < engine.last_publication.sent_bytes <= adapters < first.sent_bytes / 2
        for bucket in trainer.weight_buckets(2**28, without=trainer.frozen_weights):
            assert all(name.startswith("base_model.") for name in bucket.tensors)
    finally:
        engine.close()


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
@pytest.mark.parametrize("transport", ["shm", "distributed", "disk"])
def test_every_transport_publishes_with_a_canary_and_metrics(transport, tmp_path):
    trainer = make_trainer()
    config = RolloutConfig(
        backend="served:d1", weight_transport=transport, weight_bucket_mb=1, skip_unchanged=True, weight_timeout=60
    )
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path / "servers")
    try:
        for _ in range(3):
            metrics = engine.update_weights(trainer.version)
            assert metrics["publish/servers"] == 1
            assert metrics["publish/gb"] == trainer.weight_manifest().n_bytes / 1e9
            assert engine.last_publication.seconds["canary"] > 0
            compare_with_local(engine, trainer)
            train_step(trainer)
        assert engine.update_weights(trainer.version)
        assert engine.update_weights(trainer.version) == {"publish/servers": 1, "publish/failed": 0}, "nothing to send"
    finally:
        engine.close()
    if transport == "disk":
        folders = sorted(path.name for path in (tmp_path / "servers" / "weights").iterdir())
        assert folders == ["v2", "v3"]
        loaded = assemble(
            EngineConfig(path=str(tmp_path / "servers" / "weights" / "v3"), dtype="float32", optimizer=None)
        )
        loaded.initialize()
        assert all(torch.equal(loaded.parameters[name], weight) for name, weight in trainer.parameters.items())


def served_over_ranks(folder, fork_server_address):
    trainer = make_trainer(layout="archon:d2")
    config = RolloutConfig(backend="served:d2", weight_transport="shm")
    with starting_by_forks(ForkServer(address=fork_server_address)):
        engine = ServedEngine(config, trainer=trainer, folder=folder)
    try:
        engine.update_weights(trainer.version)
        mine = requests()[trainer.data_ranks.rank :: 2] if trainer.data_ranks.rank else requests()[:3]
        got = engine.generate(mine)
        return [[one.token_ids for one in samples] for samples in got]
    finally:
        engine.close()


@pytest.mark.wide
def test_two_ranks_share_two_servers(tmp_path, fork_server_address):
    first, second = run_world(served_over_ranks, 2, (tmp_path, fork_server_address), time_limit=240)
    local = LocalEngine(RolloutConfig(), trainer=make_trainer()).generate(requests())
    expected = [[one.token_ids for one in samples] for samples in local]
    assert first == expected[:3]
    assert second == expected[1::2]


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
def test_routed_experts_come_back_from_a_server(tmp_path):
    trainer = make_trainer("qwen3_moe")
    config = RolloutConfig(backend="served:d1", return_routed_experts=True)
    engine = ServedEngine(config, trainer=trainer, folder=tmp_path)
    try:
        engine.update_weights(trainer.version)
        local = LocalEngine(RolloutConfig(return_routed_experts=True), trainer=trainer).generate(requests())
        for got, expected in zip(engine.generate(requests()), local, strict=True):
            for one, other in zip(got, expected, strict=True):
                assert one.token_ids == other.token_ids
                assert torch.equal(one.routed_experts, other.routed_experts)
    finally:
        engine.close()


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path):
    config = RolloutConfig(backend="served:d1", max_batch_size=-1)
    with pytest.raises(ServerError, match=r"(?s)server 0 ended with code 2.*--max-batch-size: found -1"):
        ServedEngine(config, trainer=make_trainer(), folder=tmp_path)


OWNER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_served import *
engine = ServedEngine(RolloutConfig(backend="served:d1"), trainer=make_trainer(), folder=Path(sys.argv[2]))
print(engine._processes._processes[0].process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.wide
def test_a_killed_trainer_leaves_no_server_behind(tmp_path):
    command = [sys.executable, "-c", OWNER, os.path.dirname(__file__), str(tmp_path)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert is_alive(pid)
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_alive(pid))


def shown_commands() -> list[str]:
    """The requests that docs/rollout.md shows."""
    page = Path(__file__).parents[1] / "docs" / "rollout.md"
    return re.findall(r"^curl .*$", page.read_text(encoding="utf-8"), re.MULTILINE)


def run_shown_commands(address: str) -> None:
    assert len(shown_commands()) == 6
    for command in shown_commands():
        result = subprocess.run(
            ["bash", "-c", f"{command} --fail-with-body"],
            env={**os.environ, "SERVER": address, "TOKEN": "mine"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}"
        last = result.stdout.strip().splitlines()[-1]
        assert last == "data: [DONE]" or json.loads(last)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    make_trainer().save(folder, "hf")
    characters_tokenizer(["0123456789+="]).save_pretrained(folder)
    return folder


def test_the_command_answers_until_ctrl_c_and_finishes_what_it_has_begun(model_folder, tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "archon_core.cli", "serve", "--model", str(model_folder), "--record", str(record)]
    command += ["--announce", str(tmp_path / "runs" / "e" / "t")]
    announced = tmp_path / "runs" / "e" / "t" / "servers" / "announced"
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "ARCHON_SERVER_TOKEN": "mine"}
    )
    try:
        wait_until(lambda: record.exists() or process.poll() is not None)
        address = json.loads(record.read_text(encoding="utf-8"))["address"]
        run_shown_commands(address)
        wait_until(lambda: FolderRegistry(announced).list())
        assert [one.address for one in FolderRegistry(announced).list().values()] == [address]
        connection = http.client.HTTPConnection(address, timeout=60)
        body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 90, "min_tokens": 90, "n": 8, "seed": 1})
        connection.request("POST", "/v1/completions", body, {"Authorization": "Bearer mine"})
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not FolderRegistry(announced).list())
        answer = json.loads(connection.getresponse().read())
        assert [len(choice["token_ids"]) for choice in answer["choices"]] == [90] * 8
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"ready: http://{address} (model {model_folder}, version 0" in log
    assert "mine" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder/here"], "found no such folder"),
        (["--model", "{folder}", "--layout", "archon:d2"], "found archon:d2; a server shares each layer"),
        (["--model", "{folder}", "--layout", "archon:x2"], "--layout"),
        (["--model", "{folder}", "--layout", "archon:t64"], "found t64; it must divide the model's"),
        (["--model", "{folder}", "--port", "{port}"], "cannot listen there"),
        (["--model", "{folder}", "--port", "99999"], "--port: found 99999; allowed are 0"),
        (["--model", "{folder}", "--host", "no.such.host.invalid"], "cannot listen there"),
        (["--model", "{folder}/none.json"], "cannot read"),
        (["--model", "{folder}", "--max-batch-size", "0"], "--max-batch-size: found 0"),
        (["--model", "{folder}", "--dtype", "float7"], "--dtype: found 'float7'; allowed are float32, bfloat16"),
        (["--model", "{folder}", "--record", "/no/such/folder/a.json"], "--record: found no folder /no/such/folder"),
        (["--model", "{folder}", "--announce-ttl", "0"], "--announce-ttl: found 0; allowed are numbers from 1"),
        (["--model", "{folder}", "trial_name=x"], "found 'trial_name=x' without --announce"),
        (["--model", "{folder}", "--announce", "no.yaml"], "no.yaml: cannot be read"),
        (
            ["--model", "{folder}", "--announce", "{yaml}", "cluster.name_resolve.type=static"],
            "found 'static', in which servers cannot announce themselves",
        ),
    ],
    ids=str,
)
def test_bad_options_end_with_a_message_before_anything_is_loaded(arguments, message, model_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yaml = Path(__file__).parents[1] / "examples" / "grpo_arithmetic.yaml"
        names = {"folder": model_folder, "port": taken.getsockname()[1], "yaml": yaml}
        with pytest.raises(SystemExit) as exit_:
            main(["serve", *(argument.format(**names) for argument in arguments)])
    assert exit_.value.code == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
