"""Weights on many ranks: each reads its own slices, saves stream, and every layout writes and reads the same bits."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from archon_core import parse_layout, registry
from archon_core.checkpoint.hf import load_hf_weights
from archon_core.config.schema import EngineConfig, OptimizerConfig
from archon_core.data.batch import Batch
from archon_core.engine.archon import ArchonEngine
from archon_core.parallel.shards import local_part
from archon_core.plugins.specs import load_target
from archon_core.protocols import LossSums, OutputRequest
from archon_testing.worlds import run_world

LAYOUTS = ("d2", "d4", "t2", "t4", "d2t2", "d4t2")
MODELS = {
    "qwen2 untied": ("qwen2", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    # Sizes that FSDP cannot cut evenly.
    "qwen3 odd": ("qwen3", {"hidden_size": 36, "intermediate_size": 44, "vocab_size": 132}),
}
WEIGHTS = "model.safetensors"


class NegativeLogLikelihood:
    request = OutputRequest()

    def weights(self, batch):
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": -outputs["logprobs"].sum()})


def make_engine(layout, model=None, *, path=None, optimizer="adamw"):
    config = None
    if path is None:
        family, changes = MODELS[model]
        config = {**load_target(registry().get("model", family).tiny_config)(), **changes}
    engine = ArchonEngine(
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


def bytes_read_and_owned(layout, checkpoint):
    """Per rank: bytes that loading reads, and bytes of the parameters that it holds."""
    engine = make_engine(layout, path=checkpoint)
    report = load_hf_weights(
        engine.module, engine._built.weights, checkpoint, local_boxes=lambda _name, weight: [local_part(weight)]
    )
    owned = sum(local_part(parameter)[0].numel() for parameter in engine.parameters.values())
    return report.bytes_read, 4 * owned


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_reads_the_slices_that_it_owns_and_nothing_else(tmp_path, layout):
    make_engine("d1", "qwen2 untied").save(tmp_path / "hf", "hf")
    whole = (tmp_path / "hf" / WEIGHTS).stat().st_size
    read = run_world(bytes_read_and_owned, world_size(layout), (layout, tmp_path / "hf"))
    for bytes_read, bytes_owned in read:
        assert bytes_read == bytes_owned
        # Norms and the biases of row-wise layers are on every tensor rank; everything else is divided.
        assert bytes_read < 1.2 * whole / world_size(layout)


def round_trip(layout, folder):
    engine = make_engine(layout, path=folder / "hf")
    engine.save(folder / layout / "hf", "hf")
    train(engine, 1)
    engine.save(folder / layout / "dcp", "dcp")
    before = whole_weights(engine)
    other = make_engine(layout, path=folder / "hf")
    other.load(folder / layout / "dcp", "dcp")
    after = whole_weights(other)
    return other.version, [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_writes_and_reads_the_same_bits(tmp_path, model):
    make_engine("d1", model).save(tmp_path / "hf", "hf")
    original = (tmp_path / "hf" / WEIGHTS).read_bytes()
    for layout in LAYOUTS:
        for version, changed in run_world(round_trip, world_size(layout), (layout, tmp_path)):
            assert (version, changed) == (1, []), layout
        assert (tmp_path / layout / "hf" / WEIGHTS).read_bytes() == original, layout


def resume(layout, folder, model, optimizer):
    engine = make_engine(layout, model, optimizer=optimizer)
    engine.load(folder, "dcp")
    return train(engine, 3), {name: weight for name, weight in whole_weights(engine).items() if dist.get_rank() == 0}


def begin(layout, folder, model, optimizer):
    engine = make_engine(layout, model, optimizer=optimizer)
    train(engine, 2)
    engine.save(folder, "dcp")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_upon_other_layouts_with_the_same_numbers(tmp_path, optimizer):
    straight = make_engine("d1", "qwen3 tied", optimizer=optimizer)
    train(straight, 2)
    expected = train(straight, 3)
    run_world(begin, 4, ("d2t2", tmp_path, "qwen3 tied", optimizer))
    for layout in ("t2", "d3"):
        losses, _ = run_world(resume, world_size(layout), (layout, tmp_path, "qwen3 tied", optimizer))[0]
        assert losses == pytest.approx(expected, rel=1e-5), layout


MEBIBYTE = 2**20


def memory_for_saving(folder):
    """Bytes by which resident memory rises at most while a checkpoint is written; sizes of a tensor and of a part."""
    rows, columns = 2**14, 2**10  # 64 MiB in fp32
    sizes = {"vocab_size": rows, "hidden_size": columns, "num_hidden_layers": 1, "intermediate_size": 64}
    MODELS["large"] = ("qwen3", sizes)
    engine = make_engine("d2t2", "large")
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    engine.save(folder, "hf")
    return _resident("VmHWM") - before


def _resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc")
def test_saving_holds_one_whole_tensor_and_a_part_on_the_writer_and_a_part_elsewhere(tmp_path):
    tensor, part, slack = 64 * MEBIBYTE, 16 * MEBIBYTE, 16 * MEBIBYTE
    writer, *others = run_world(memory_for_saving, 4, (tmp_path / "hf",))
    # The model has two such tensors, so holding all of it would take twice as much.
    assert writer < tensor + part + slack
    assert max(others) < part + slack
