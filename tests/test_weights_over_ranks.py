"""Weights on many ranks: each reads its own slices, saves stream, and every layout writes and reads the same bits."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import WeightsError
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.seal import SEAL
from archon_engine.parallel.shards import local_part
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

WIDE = ("t4", "d4t2", "r2c2t2")
LAYOUTS = ("d2", *(pytest.param(layout, marks=pytest.mark.wide) for layout in WIDE))
MODELS = {
    "qwen2 untied": ("qwen2", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    # Sizes that FSDP cannot cut evenly.
    "qwen3 odd": ("qwen3", {"hidden_size": 36, "intermediate_size": 44, "vocab_size": 132}),
}
WEIGHTS = "model.safetensors"


def make_engine(layout, model=None, *, path=None, optimizer="adamw"):
    config = None
    if path is None:
        family, changes = MODELS[model]
        config = {**load_target(registry().get("model", family).tiny_config)(), **changes}
    engine = assemble(
        EngineConfig(
            path=None if path is None else str(path),
            model_config=config,
            dtype="float32",
            optimizer=OptimizerConfig(type=optimizer, lr=1e-2),
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def train(engine, n_steps):
    """Steps on the same batches, whatever the layout; the losses."""
    losses = []
    for step in range(n_steps):
        generator = torch.Generator().manual_seed(step)
        rows = [torch.randint(0, 128, (n,), generator=generator) for n in (4, 9, 1, 6, 3)]
        batch, ranks = Batch.from_sequences(rows), engine.data_ranks
        losses.append(
            engine.train_batch(batch.select(range(ranks.rank, len(batch), ranks.size)), NegativeLogLikelihood()).loss
        )
    return losses


def whole_weights(engine):
    with torch.no_grad():
        return {name: getattr(p, "full_tensor", lambda p=p: p)().clone() for name, p in engine.parameters.items()}


def world_size(layout):
    return parse_layout(f"archon:{layout}").world_size


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a checkpoint of each model, written by one process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for model in MODELS:
        make_engine("d1", model).save(folder / model, "hf")
    return folder


def round_trips(layout, checkpoints, folder):
    """Per model: bytes that loading reads, bytes of the parameters that this rank holds, and which weights a
    distributed checkpoint has changed."""
    results = []
    for model in MODELS:
        path = checkpoints / model
        engine = make_engine(layout, path=path)
        report = load_hf_weights(
            engine.module,
            engine._running.assembled.plan.weights,
            path,
            local_boxes=lambda _name, weight: [local_part(weight)],
        )
        owned = sum(local_part(parameter)[0].numel() for parameter in engine.parameters.values())
        engine.save(folder / model / "hf", "hf")
        train(engine, 1)
        engine.save(folder / model / "dcp", "dcp")
        before = whole_weights(engine)
        # Back to the beginning, so that nothing but the checkpoint can bring the trained weights.
        engine.load(path, "hf")
        assert not torch.equal(whole_weights(engine)["embed.weight"], before["embed.weight"])
        engine.load(folder / model / "dcp", "dcp")
        after = whole_weights(engine)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        results.append((report.bytes_read, 4 * owned, changed))
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_its_own_slices_and_writes_the_same_bits(checkpoints, tmp_path, layout):
    ranks = run_world(round_trips, world_size(layout), (layout, checkpoints, tmp_path))
    for model, of_ranks in zip(MODELS, zip(*ranks, strict=True), strict=True):
        original = (checkpoints / model / WEIGHTS).read_bytes()
        assert (tmp_path / model / "hf" / WEIGHTS).read_bytes() == original, model
        for bytes_read, bytes_owned, changed in of_ranks:
            assert changed == [], model
            assert bytes_read == bytes_owned, model
            if model == "qwen2 untied":
                # Norms and the biases of row-wise layers are on every tensor rank; everything else is divided, once per
                # replica.
                n_parts = parse_layout(f"archon:{layout}").parallel_dims(moe=False).sharding_size
                assert bytes_read < 1.2 * len(original) / n_parts


def damaged(folder, original, change):
    """A copy of a checkpoint whose tensors ``change`` has altered, as another program would have written it."""
    shutil.copytree(original, folder)
    (folder / SEAL).unlink()
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def add_copy_of_the_head(tensors, *, wrong_row=None):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if wrong_row is not None:
        tensors["lm_head.weight"][wrong_row, 0] += 1


def refusals(layout, folder):
    """Messages of loads and of a save that fail, by what is wrong."""
    engine = make_engine(layout, "qwen3 tied")
    messages = {}
    for what, format in (("copy", "hf"), ("quantised", "hf"), ("metadata", "dcp"), ("part", "dcp")):
        with pytest.raises(WeightsError) as refused:
            engine.load(folder / what, format)
        messages[what] = str(refused.value)
    with pytest.raises(WeightsError) as refused:
        engine.save(folder / "tied", "hf")
    messages["save"] = str(refused.value)
    # A right copy is none the worse, and the engine is of use after all that.
    engine.load(folder / "tied", "hf")
    return messages, train(engine, 1)


def test_a_checkpoint_that_is_damaged_where_one_rank_looks_is_refused_by_all(tmp_path):
    make_engine("d1", "qwen3 tied").save(tmp_path / "original", "hf")
    damaged(tmp_path / "tied", tmp_path / "original", add_copy_of_the_head)
    damaged(tmp_path / "copy", tmp_path / "original", lambda t: add_copy_of_the_head(t, wrong_row=127))
    # The last of five ranks holds no part of this vector of 8.
    norm = "model.layers.0.self_attn.q_norm.weight"
    damaged(tmp_path / "quantised", tmp_path / "original", lambda t: t.update({norm: t[norm].to(torch.int8)}))
    state = make_engine("d1", "qwen3 tied")
    state.save(tmp_path / "metadata", "dcp")
    state.save(tmp_path / "part", "dcp")
    (tmp_path / "metadata" / ".metadata").write_bytes(b"damaged")
    for file in (tmp_path / "part").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    state.load(tmp_path / "tied", "hf")
    expected = train(state, 1)
    for messages, losses in run_world(refusals, 5, ("d5", tmp_path)):
        assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in messages["copy"]
        assert f"tensor {norm!r} has type I8" in messages["quantised"]
        assert "metadata/.metadata: found damage: the file has 7 bytes" in messages["metadata"]
        assert "part/__0_0.distcp: found damage: the file has" in messages["part"]
        assert "found weights already" in messages["save"]
        assert losses == pytest.approx(expected, rel=1e-5)


def resume(layout, folder, model, optimizer):
    engine = make_engine(layout, model, optimizer=optimizer)
    engine.load(folder, "dcp")
    return train(engine, 3), {name: weight for name, weight in whole_weights(engine).items() if dist.get_rank() == 0}


def begin(layout, folder, model, optimizer):
    engine = make_engine(layout, model, optimizer=optimizer)
    train(engine, 2)
    engine.save(folder, "dcp")


@pytest.mark.parametrize(("optimizer", "layout"), [("adamw", "t2"), ("muon", "d3")])
def test_a_run_goes_on_upon_another_layout_with_the_same_numbers(tmp_path, optimizer, layout):
    straight = make_engine("d1", "qwen3 tied", optimizer=optimizer)
    train(straight, 2)
    expected = train(straight, 3)
    run_world(begin, 4, ("d2t2", tmp_path, "qwen3 tied", optimizer))
    losses, _ = run_world(resume, world_size(layout), (layout, tmp_path, "qwen3 tied", optimizer))[0]
    assert losses == pytest.approx(expected, rel=1e-5)


MEBIBYTE = 2**20


def memory_for_saving(folder):
    """Bytes by which resident memory rises at most while a checkpoint is written; sizes of a tensor and of a part."""
    rows, columns = 2**14, 2**10  # 64 MiB in fp32
    sizes = {"vocab_size": rows, "hidden_size": columns, "num_hidden_layers": 1, "intermediate_size": 64}
    MODELS["large"] = ("qwen3", sizes)
    engine = make_engine("d2t2", "large")
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = _resident("VmRSS")
    engine.save(folder, "hf")
    return _resident("VmHWM") - before


def _resident(which):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc")
def test_saving_holds_one_whole_tensor_and_a_part_on_the_writer_and_a_part_elsewhere(tmp_path):
    tensor, part, slack = 64 * MEBIBYTE, 16 * MEBIBYTE, 16 * MEBIBYTE
    writer, *others = run_world(memory_for_saving, 4, (tmp_path / "hf",))
    # The model has two such tensors, so holding all of it would take twice as much.
    assert writer < tensor + part + slack
    assert max(others) < part + slack
