"""Publications to vLLM and SGLang servers, with the transports of archon-rollout.

The servers have the routes and fields of the real ones, which the tests of the packages record.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "archon-vllm" / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "archon-sglang" / "tests"))

from sglang_server import SglangServer
from vllm_server import VllmServer, logprob_of

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.weight_transport import TransportContext, WeightBucket
from archon_core.models.box import Box
from archon_core.plugins import registry
from archon_core.ranks.ranks import DataRanks
from archon_core.serving.manifest import TensorEntry, WeightManifest, plan_buckets
from archon_engine.checkpoint.safetensors_file import SafetensorsReader
from archon_rollout.plugin import archon_weight_transports
from archon_rollout.publication.adapters import publish_apart
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.registries.run_place import find_run
from archon_rollout.servers_view import Observer
from archon_rollout.transports.disk import ADAPTER_FOLDERS
from archon_sglang.driver import SglangDriver
from archon_vllm.driver import VllmDriver

TRANSPORTS = {spec.name: spec for spec in archon_weight_transports()}
SECONDS = 20.0
CANARY = Canary((1, 2, 3), n_tokens=4)


class TensorEngine:
    """The part of ``TrainEngine`` that a publisher uses."""

    data_ranks = DataRanks()

    def __init__(self):
        self.version = 0
        self.tensors = {"embed": torch.rand(50, 40), "up": torch.rand(300, 40).bfloat16(), "norm": torch.rand(40)}

    def step(self):
        self.version += 1
        for tensor in self.tensors.values():
            tensor.add_(0.5)

    def weight_manifest(self, dtype=None):
        entries = (
            TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        )
        return WeightManifest(self.version, tuple(entries))

    def weight_buckets(self, max_bytes, dtype=None, memory=None):
        for index, entries in enumerate(plan_buckets(self.weight_manifest().tensors, max_bytes)):
            yield WeightBucket(index, {entry.name: self.tensors[entry.name] for entry in entries})

    def forward_batch(self, batch, request):
        return {"logprobs": torch.full((sum(batch.lengths),), logprob_of(self.tensors), dtype=torch.float64)}


@pytest.fixture
def engine():
    torch.manual_seed(0)
    return TensorEngine()


@pytest.fixture
def publisher_of(engine, tmp_path):
    made = []

    def make(driver, transport, canary=CANARY):
        context = TransportContext(driver, run="foreign", folder=tmp_path, timeout=SECONDS, bucket_bytes=2**13)
        options = PublisherOptions(bucket_bytes=2**13, timeout=SECONDS, canary=canary)
        made.append(Publisher(engine, driver, TRANSPORTS[transport].load()(context), options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


def read_folder(folder):
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        reader = SafetensorsReader(file)
        tensors |= {name: reader.read(name, Box.whole(shape)) for name, shape in reader.shapes.items()}
    return tensors


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("transport", ["shm", "distributed", "disk"])
def test_vllm_servers_get_every_version_and_pass_the_canary(engine, publisher_of, transport):
    driver = VllmDriver(RolloutConfig(weight_transport=transport))
    with VllmServer(engine.tensors) as first, VllmServer(engine.tensors) as second:
        for server in (first, second):
            server.worker.reload_weights = lambda weights_path, w=server.worker: w.load(
                read_folder(weights_path).items()
            )
        records = [driver.ready(server.address, timeout=SECONDS) for server in (first, second)]
        if transport == "disk":  # without the plugin, the stand-ins have one identity
            records = records[:1]
        publisher = publisher_of(driver, transport)
        for _ in range(2):
            engine.step()
            publication = publisher.publish(records)
            assert not publication.failed
            assert_equal(first.worker.tensors, engine.tensors)
            assert first.version == str(engine.version)
        assert not first.paused


@pytest.fixture
def adapted(engine, tmp_path):
    """An engine that trains adapters and publishes them apart, and the context of its transport."""
    companions = tmp_path / "architecture"
    companions.mkdir()
    (companions / "config.json").write_text("{}", encoding="utf-8")
    (companions / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}', encoding="utf-8")
    frozen = dict(engine.tensors)
    adapters = {f"base_model.model.up.lora_{end}.weight": torch.rand(2, 40) for end in "AB"}
    engine.tensors |= adapters

    def step():
        engine.version += 1
        for tensor in adapters.values():
            tensor.add_(0.5)

    engine.step = step

    def publisher(driver, canary=CANARY):
        more = {"companions": companions, "options": {ADAPTER_FOLDERS: 3}}
        context = TransportContext(driver, run="foreign", folder=tmp_path, timeout=SECONDS, bucket_bytes=2**13, **more)
        options = PublisherOptions(bucket_bytes=2**13, timeout=SECONDS, canary=canary)
        return Publisher(engine, driver, TRANSPORTS["disk"].load()(context), options)

    return SimpleNamespace(engine=engine, frozen=frozen, adapters=adapters, publisher=publisher)


ONE_TOKEN = GenerationRequest((3, 4), GenerationConfig(max_new_tokens=1), seeds=(7,))
LONG = GenerationRequest((3, 4), GenerationConfig(max_new_tokens=400), seeds=(7,))


def generate(driver, record, request, id="r"):
    return asyncio.run(driver.generate(record, request, request_id=id, timeout=SECONDS))[0]


class AdapterTrainer:
    """The part of ``TrainsAdapters`` that chooses what is published."""

    frozen_weights = ("up",)

    def without_adapters(self):
        raise NotImplementedError

    def publish_apart(self):
        return {"peft_type": "LORA"}


@pytest.mark.parametrize(
    ("backend", "transport", "reason"),
    [
        ("vllm", "disk", ""),
        ("sglang", "disk", ""),
        ("vllm", "shm", "with shm servers of the kind vllm get merged weights, .*; they take adapters by disk"),
    ],
)
def test_adapters_are_published_apart_by_transports_with_which_servers_take_them(backend, transport, reason):
    config = RolloutConfig(use_lora=True, weight_transport=transport)
    described, decisions = publish_apart(config, registry().get(ServerDriverSpec, backend), AdapterTrainer())
    assert described == (None if reason else {"peft_type": "LORA"})
    assert len(decisions) == bool(reason)
    assert all(re.match(reason, decision.reason) for decision in decisions)


def test_vllm_servers_load_adapters_beside_weights_that_they_load_once(adapted, tmp_path):
    engine = adapted.engine
    driver = VllmDriver(RolloutConfig(weight_transport="disk", use_lora=True, max_head_offpolicyness=1))
    with VllmServer(engine.tensors) as server, ThreadPoolExecutor(1) as background:
        server.worker.tensors, loads = {}, []

        def reload_weights(weights_path):
            loads.append(weights_path)
            server.worker.load(read_folder(weights_path).items())

        server.worker.reload_weights = reload_weights
        record = driver.ready(server.address, timeout=SECONDS)
        publisher = adapted.publisher(driver)
        running = None
        for version in (1, 2, 3, 4):
            engine.step()
            # The canary compares log-probabilities, which depend on every tensor, adapters included.
            publication = publisher.publish([record])
            assert not publication.failed
            assert_equal(server.worker.tensors, adapted.frozen)
            assert_equal(server.adapters[f"archon-v{version}"], adapted.adapters)
            assert driver.state(record, timeout=SECONDS).version == version
            assert generate(driver, record, ONE_TOKEN).versions == (version,)
            if version == 1:
                running = background.submit(generate, driver, record, LONG, "long")
                while not server.running:
                    time.sleep(0.002)
        assert len(loads) == 1
        # A request that started one version before the newest may use the version before that.
        assert list(server.adapters) == ["archon-v2", "archon-v3", "archon-v4"]
        # vLLM reads the folder of an adapter again if it has dropped the adapter.
        folders = {path.name: {child.name for child in path.iterdir()} for path in tmp_path.glob("weights/*")}
        assert folders.keys() == {"v2", "v3", "v4"}
        assert folders["v2"] == {"adapter"} < folders["v3"]
        assert {"adapter_config.json", "adapter_model.safetensors"} == {
            path.name for path in tmp_path.glob("weights/v2/adapter/*")
        }
        # A request keeps the adapter with which it started, and its tokens say so.
        assert running.result().versions == (1,) * 400
        # A trainer that resumed from an earlier step publishes a version again.
        engine.version = 2
        engine.step()
        assert not publisher.publish([record]).failed
        assert [path.name for path in tmp_path.glob("weights/v4")] == []
        assert_equal(server.adapters["archon-v3"], adapted.adapters)
        publisher.close()
        # A trainer that was started again does not know which adapters the server has.
        again = VllmDriver(RolloutConfig(weight_transport="disk", use_lora=True))
        publisher = adapted.publisher(again)
        engine.version = 1
        engine.step()
        assert not publisher.publish([again.ready(server.address, timeout=SECONDS)]).failed
        assert_equal(server.adapters["archon-v2"], adapted.adapters)
        publisher.close()


def test_sglang_servers_load_adapters_beside_weights_that_they_load_once(adapted):
    engine = adapted.engine
    driver = SglangDriver(RolloutConfig(use_lora=True))
    with SglangServer() as server:
        record = driver.ready(server.address, timeout=SECONDS)
        publisher = adapted.publisher(driver, canary=None)
        for version in (1, 2):
            engine.step()
            assert not publisher.publish([record]).failed
            folder = Path(server.adapters[f"archon-v{version}"])
            assert_equal(read_folder(folder), adapted.adapters)
            assert (folder / "adapter_config.json").is_file()
            assert_equal(read_folder(folder.parent), adapted.frozen)
            assert generate(driver, record, ONE_TOKEN).versions == (version,)
            assert server.calls[-1][1]["lora_path"] == f"archon-v{version}"
        assert server.paths().count("/update_weights_from_disk") == 1
        publisher.close()
        # A collector's driver has loaded nothing; the trainer names the version of every server.
        other = SglangDriver(RolloutConfig(use_lora=True))
        assert generate(other, replace(record, version=2), ONE_TOKEN).versions == (2,)
        assert server.calls[-1][1]["lora_path"] == "archon-v2"


def test_a_vllm_server_with_other_weights_than_it_was_sent_leaves(engine, publisher_of):
    driver = VllmDriver(RolloutConfig(weight_transport="shm"))
    with VllmServer(engine.tensors) as honest, VllmServer(engine.tensors) as wrong:
        wrong.worker.updates = type(wrong.worker.updates)(
            lambda tensors: wrong.worker.load((name, tensor * 1.5) for name, tensor in tensors),
            incarnation=wrong.worker.updates.incarnation,
        )
        records = [driver.ready(server.address, timeout=SECONDS) for server in (honest, wrong)]
        engine.step()
        publication = publisher_of(driver, "shm").publish(records)
        assert [server.address for server in publication.committed] == [honest.address]
        (failed,) = publication.failed
        assert failed.server.address == wrong.address
        assert failed.phase == "canary"


def test_a_vllm_server_without_the_plugin_is_shown_in_a_run_that_publishes_by_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "mine")
    file = tmp_path / "run.yaml"
    with VllmServer({}) as server:
        server.worker = None
        options = f"rollout: {{backend: 'vllm:d1', weight_transport: disk, addresses: ['{server.address}']}}"
        file.write_text(f"{options}\ncluster: {{fileroot: {tmp_path}}}\n", encoding="utf-8")
        [row] = Observer(find_run(file)).look().servers
    assert (row.kind, row.server, row.error) == ("vllm", "no weights", "")


def test_sglang_servers_load_the_published_folder(engine, publisher_of):
    driver = SglangDriver(RolloutConfig())
    with SglangServer() as server:
        record = driver.ready(server.address, timeout=SECONDS)
        publisher = publisher_of(driver, "disk", canary=None)
        for _ in range(2):
            engine.step()
            publication = publisher.publish([record])
            assert not publication.failed
            assert_equal(read_folder(server.model_path), engine.tensors)
            assert server.version == str(engine.version)
        assert not server.paused
