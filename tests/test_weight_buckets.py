"""Published weights: from every layout, rank 0 gathers the bits that one process saves, in buckets of any size."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import WeightsError
from archon_core.serving.manifest import plan_buckets, size_of_bucket
from archon_testing.worlds import run_world

MODELS = {
    "qwen2": ("qwen2", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    # Sizes that FSDP cannot divide evenly.
    "qwen3 odd": ("qwen3", {"hidden_size": 36, "intermediate_size": 44, "vocab_size": 132}),
    "qwen3_moe": ("qwen3_moe", {}),
}
DENSE = ("qwen2", "qwen3 tied", "qwen3 odd")
SIZES = {"1 KiB": 2**10, "50 kB": 50_000, "whole": 2**40}

CASES = [
    ("archon:d2", ("qwen3 odd",)),
    ("archon:p2", ("qwen3 tied",)),
    ("archon:d2e2", ("qwen3_moe",)),
    *(
        pytest.param(layout, models, marks=pytest.mark.wide)
        for layout, models in (
            ("archon:d2", ("qwen2", "qwen3 tied")),
            ("archon:t2", DENSE),
            ("archon:c2", DENSE),
            ("archon:r2", DENSE),
            ("archon:d2t2", DENSE),
            ("archon:d2p2", ("qwen2", "qwen3 tied")),
            ("archon:t2p2", ("qwen2", "qwen3 tied")),
            ("archon:(attn:d2t2|ffn:d1e2t2)", ("qwen3_moe",)),
            ("archon:d2p2e2", ("qwen3_moe",)),
            ("archon:r2d2", ("qwen3 odd",)),
            ("fsdp:d2", ("qwen2", "qwen3 tied")),
            ("fsdp:t2", ("qwen2",)),
        )
    ),
]


def make_engine(layout, *, model=None, path=None, dtype="float32", critic=False):
    config = None
    if path is None:
        family, changes = MODELS[model]
        config = {**load_target(registry().get("model", family).tiny_config)(), **changes}
    engine = assemble(
        EngineConfig(
            path=None if path is None else str(path),
            model_config=config,
            dtype=dtype,
            optimizer=None,
            is_critic=critic,
        ),
        role="critic" if critic else "actor",
        layout=parse_layout(layout),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Model -> folder that one process saved."""
    folder = tmp_path_factory.mktemp("exports")
    for model in MODELS:
        make_engine("archon:d1", model=model).save(folder / model, "hf")
    return {model: folder / model for model in MODELS}


def gather(layout, paths, dtype=None):
    """Per model and size: the names in each bucket, and all tensors."""
    found = {}
    for model, path in paths.items():
        engine = make_engine(layout, path=path)
        for size, limit in SIZES.items():
            names, tensors = [], {}
            for bucket in engine.weight_buckets(limit, dtype):
                assert bucket.index == len(names)
                names.append(list(bucket.tensors))
                tensors |= {name: tensor.clone() for name, tensor in bucket.tensors.items()}
            found[model, size] = names, tensors
    return found


def check(of_ranks, exports, manifests):
    for (model, size), (names, tensors) in of_ranks[0].items():
        stored, entries = load_file(exports[model] / "model.safetensors"), manifests[model].tensors
        planned = plan_buckets(entries, SIZES[size])
        assert names == [[entry.name for entry in bucket] for bucket in planned], (model, size)
        assert tensors.keys() == stored.keys()
        for entry in entries:
            assert entry.shape == tuple(stored[entry.name].shape)
            assert tensors[entry.name].dtype == getattr(torch, entry.dtype)
            assert torch.equal(tensors[entry.name], stored[entry.name].to(getattr(torch, entry.dtype))), entry.name
        for other in of_ranks[1:]:
            assert other[model, size] == ([[]] * len(planned), {}), "other ranks take the same number of buckets"


@pytest.fixture(scope="module")
def manifests(exports):
    return {model: make_engine("archon:d1", path=path).weight_manifest() for model, path in exports.items()}


@pytest.mark.parametrize(("layout", "models"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_every_layout_publishes_the_bits_that_one_process_saves(layout, models, exports, manifests):
    paths = {model: exports[model] for model in models}
    check(run_world(gather, parse_layout(layout).world_size, (layout, paths)), exports, manifests)


def test_one_process_publishes_and_casts(exports):
    paths = {"qwen3 odd": exports["qwen3 odd"]}
    engine = make_engine("archon:d1", path=paths["qwen3 odd"])
    for dtype in (None, "bfloat16"):
        manifest = engine.weight_manifest(dtype)
        assert {entry.dtype for entry in manifest.tensors} == {dtype or "float32"}
        check([gather("archon:d1", paths, dtype)], exports, {"qwen3 odd": manifest})


def test_parts_are_cast_before_they_are_sent(exports, manifests):
    paths = {"qwen3 odd": exports["qwen3 odd"]}
    manifest = make_engine("archon:d1", path=paths["qwen3 odd"]).weight_manifest("bfloat16")
    check(run_world(gather, 2, ("archon:t2", paths, "bfloat16")), exports, {"qwen3 odd": manifest})


def test_two_buffers_hold_every_bucket(exports):
    """A bucket stays valid while the next one is gathered, and no more memory is taken than for two."""
    engine = make_engine("archon:d1", path=exports["qwen2"])
    limit = SIZES["50 kB"]
    storages, previous = {}, None
    for bucket in engine.weight_buckets(limit):
        for tensor in bucket.tensors.values():
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        if previous is not None:
            kept, copies = previous
            assert all(torch.equal(kept[name], copies[name]) for name in kept)
        previous = bucket.tensors, {name: tensor.clone() for name, tensor in bucket.tensors.items()}
    for bucket in engine.weight_buckets(limit):  # the memory is warm now, and used again
        assert {tensor.untyped_storage().data_ptr() for tensor in bucket.tensors.values()} <= storages.keys()
    largest = max(size_of_bucket(planned) for planned in plan_buckets(engine.weight_manifest().tensors, limit))
    assert len(storages) == 2
    assert set(storages.values()) == {largest}


def test_critics_are_not_published():
    engine = make_engine("archon:d1", model="qwen3 tied", critic=True)
    with pytest.raises(WeightsError, match="engine 'critic': found a critic"):
        engine.weight_manifest()
    with pytest.raises(WeightsError, match="publish the actor's weights"):
        engine.weight_buckets(2**20)
