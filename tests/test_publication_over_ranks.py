"""Publication by a trainer of many ranks: rank 0 talks to servers, the others send their shards, all get one result."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.spec import load_target
from archon_core.contracts.weight_transport import TransportContext
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

SCRIPT = Path(__file__).parents[1] / "packages/archon-rollout/tests/publication/weight_server.py"

# The servers have no model, so their log-probabilities are not compared; the trainer's forward pass runs all the same.
CANARY = Canary((1, 2, 3), n_tokens=4, tolerance=1e9)


def weight_server():
    spec = importlib.util.spec_from_file_location("weight_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def publish(layout, model, transport, bucket_bytes, lines, folder):
    """Publish twice, with a step between; save what should have arrived."""
    family, _, tied = model.partition(" ")
    config = {**load_target(registry().get("model", family).tiny_config)(), "tie_word_embeddings": bool(tied)}
    engine = assemble(
        EngineConfig(model_config=config, dtype="float32"),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    ranks, driver, sender = engine.data_ranks.everyone, None, None
    if ranks.is_first:
        server = weight_server()
        driver = server.HttpDriver()
        context = TransportContext(driver, "over-ranks", folder, bucket_bytes=bucket_bytes)
        sender = registry().get("weight_transport", transport).load()(context)
    servers = [weight_server().record_of(line) for line in lines] if ranks.is_first else []
    publisher = Publisher(engine, driver, sender, PublisherOptions(bucket_bytes=bucket_bytes, canary=CANARY))
    results = [publisher.publish(servers)]
    rows = [[1, 2, 3, 4], [5, 6, 7]]
    own = Batch.from_sequences(rows[engine.data_ranks.rank :: engine.data_ranks.size])
    engine.train_batch(own, NegativeLogLikelihood())
    results.append(publisher.publish(servers))
    engine.save(folder / "expected", "hf")
    publisher.close()
    return results


@pytest.mark.parametrize(
    ("layout", "model", "transport", "bucket_bytes"),
    [
        ("d2", "qwen3", "shm", 2**16),
        *(
            pytest.param(*case, marks=pytest.mark.wide)
            for case in (
                ("d2", "qwen3 tied", "distributed", 2**30),
                ("t2", "qwen2", "distributed", 2**16),
                ("t2", "qwen3 tied", "shm", 2**10),
                ("d2t2", "qwen3", "shm", 2**16),
                ("p2", "qwen3", "disk", 2**16),
                ("p2", "qwen3 tied", "shm", 2**30),
                ("t2p2", "qwen2", "shm", 2**10),
                ("d2p2", "qwen3 tied", "distributed", 2**10),
                ("d2e2", "qwen3_moe", "shm", 2**16),
                ("d2e2", "qwen3_moe", "distributed", 2**10),
                ("d2p2e2", "qwen3_moe", "shm", 2**30),
                ("(attn:d2t2|ffn:d1e2t2)", "qwen3_moe", "shm", 2**10),
            )
        ),
    ],
)
def test_every_rank_takes_part_and_servers_hold_the_exported_bits(layout, model, transport, bucket_bytes, tmp_path):
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        lines = [process.stdout.readline() for process in processes]
        world = parse_layout(f"archon:{layout}").world_size
        of_ranks = run_world(publish, world, (layout, model, transport, bucket_bytes, lines, tmp_path))
        for results in of_ranks:
            assert [(result.version, len(result.committed), result.failed) for result in results] == [
                (0, 2, ()),
                (1, 2, ()),
            ]
            assert all(result.sent_bytes == result.n_bytes for result in results)
            assert results == of_ranks[0], "all ranks know the same outcome"
        expected = load_file(tmp_path / "expected" / "model.safetensors")
        module = weight_server()
        for line in lines:
            server = module.record_of(line)
            module.HttpDriver().call(server, "weights", str(tmp_path / "found.pt"))
            found = torch.load(tmp_path / "found.pt")
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
