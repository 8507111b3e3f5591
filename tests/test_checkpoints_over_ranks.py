"""Checkpoints of many ranks: every damaged file is refused by its name on all of them; a state that is written while
training goes on is that of its moment."""

import json
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import DamagedError, WeightsError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint import hf_saving
from archon_engine.checkpoint.dcp_storage import TensorWriter
from archon_engine.checkpoint.gathering import gather_to_writer
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import WorldError, run_world

STATE_FILES = {".metadata", "checksums.json", "counters.json", "model.json", "__0_0.distcp", "__1_0.distcp"}
PLACES = 4
"""Bytes of each file that are altered, one at a time: at its ends, and drawn."""


def make_engine(layout, *, path=None, dtype="float32"):
    config = None if path else load_target(registry().get("model", "qwen3").tiny_config)()
    engine = assemble(
        EngineConfig(
            path=path and str(path), model_config=config, dtype=dtype, optimizer=OptimizerConfig(type="adamw", lr=1e-2)
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def train(engine):
    """One step, on tokens that depend on the step."""
    generator, ranks = torch.Generator().manual_seed(engine.version), engine.data_ranks
    rows = [torch.randint(0, 128, (n,), generator=generator) for n in (4, 9, 1, 6, 3)]
    batch = Batch.from_sequences(rows)
    engine.train_batch(batch.select(range(ranks.rank, len(batch), ranks.size)), NegativeLogLikelihood())


def whole(engine):
    with torch.no_grad():
        return {name: getattr(p, "full_tensor", lambda p=p: p)().clone() for name, p in engine.parameters.items()}


def write(layout, folder):
    engine = make_engine(layout)
    train(engine)
    engine.save(folder / "dcp", "dcp")
    save_hf_weights(
        gather_to_writer(engine._running.assembled.named_weights, dtype=torch.float32),
        engine._running.assembled.plan.weights,
        folder / "hf",
        engine.hf_config,
        dtype=torch.float32,
        max_shard_bytes=2**16,
        write=engine.data_ranks.everyone.is_first,
    )
    return whole(engine)


def damages(folder):
    """Name of a file, what is done to it, and its content then; ``None`` for no file."""
    draw = random.Random(1)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        yield file.name, "lost", None
        yield file.name, "cut off", content[: len(content) // 2]
        yield file.name, "cut off by one", content[:-1]
        yield file.name, "longer", content + b"\0"
        for place in (0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(PLACES - 2))):
            altered = bytearray(content)
            altered[place] ^= 1 << draw.randrange(8)
            yield file.name, f"bit of byte {place}", bytes(altered)


def refusals(layout, folder, format, files):
    """What loading each damaged copy says. The first rank damages, all load."""
    engine = make_engine(layout)
    everyone = engine.data_ranks.everyone
    messages = []
    for name, what, content in damages(folder / "whole" / format):
        if name not in files:
            continue
        copy = folder / "copy" / format
        with failing_together(everyone):
            if everyone.is_first:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder / "whole" / format, copy)
                (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
        try:
            engine.load(copy, format)
        except WeightsError as error:
            messages.append((name, what, isinstance(error, DamagedError), str(error)))
        else:
            messages.append((name, what, None, "loaded"))
    engine.load(folder / "whole" / format, format)
    return messages, whole(engine)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, run_world(write, 2, ("d2", folder / "whole"))[0]


def test_a_damaged_training_state_is_refused_by_name_on_every_rank(checkpoint):
    folder, weights = checkpoint
    assert {file.name for file in (folder / "whole" / "dcp").iterdir()} == STATE_FILES
    for messages, loaded in run_world(refusals, 3, ("d3", folder, "dcp", STATE_FILES), time_limit=120):
        assert len(messages) == len(STATE_FILES) * (4 + PLACES)
        for name, what, is_damage, text in messages:
            if (name, what) == ("checksums.json", "lost"):
                assert text == "loaded"  # as those of earlier versions are, with a decision
            elif what == "lost" and name in (".metadata", "counters.json"):
                assert "found none, or an incomplete one" in text
                assert is_damage
            else:
                assert f"/{name}: " in text, (name, what, text)
                assert is_damage, (name, what, text)
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def test_a_damaged_hugging_face_folder_is_refused_by_name_on_every_rank(checkpoint):
    folder, weights = checkpoint
    files = {file.name for file in (folder / "whole" / "hf").glob("*.safetensors*")}
    assert len(files) > 2
    for messages, loaded in run_world(refusals, 2, ("t2", folder, "hf", files), time_limit=120):
        assert len(messages) == len(files) * (4 + PLACES)
        for name, what, is_damage, text in messages:
            assert f"/{name}: " in text, (name, what, text)
            assert is_damage, (name, what, text)
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert AutoModelForCausalLM.from_pretrained(folder / "whole" / "hf").num_parameters() > 0


def test_a_state_without_checksums_is_read_by_torch_and_the_decision_says_so(checkpoint, tmp_path):
    folder, weights = checkpoint
    shutil.copytree(folder / "whole" / "dcp", tmp_path / "dcp")
    (tmp_path / "dcp" / "checksums.json").unlink()
    engine = make_engine("d1")
    engine.load(tmp_path / "dcp", "dcp")
    assert all(torch.equal(weight, weights[name]) for name, weight in whole(engine).items())
    [decision] = [decision for decision in engine.decisions if decision.option == "trainer.resume"]
    assert decision.effective == "not checked for damage"


def test_torchs_own_tools_read_the_state(checkpoint):
    folder, weights = checkpoint
    tensors = {f"weights.{name}": torch.zeros_like(weight) for name, weight in weights.items()}
    dcp.load(tensors, checkpoint_id=folder / "whole" / "dcp", no_dist=True)
    assert all(torch.equal(tensors[f"weights.{name}"], weight) for name, weight in weights.items())


def test_weights_of_another_type_are_refused(checkpoint):
    folder, _ = checkpoint
    with pytest.raises(
        WeightsError, match=r"found torch\.float32, the model has torch\.float64; resume with the dtype"
    ):
        make_engine("d1", dtype="float64").load(folder / "whole" / "dcp", "dcp")


def full_disk(folder):
    """Saves on ranks of which the writing one runs out of space half-way."""
    from archon_engine.checkpoint.data_file import DataFile
    from archon_engine.checkpoint.safetensors_file import SafetensorsWriter

    engine = make_engine("d2")
    n_written = 0

    def failing(write):
        def write_some(*arguments):
            nonlocal n_written
            n_written += 1
            if n_written > 5 and engine.data_ranks.everyone.is_first:
                raise OSError(28, "No space left on device")
            return write(*arguments)

        return write_some

    SafetensorsWriter.write = failing(SafetensorsWriter.write)
    DataFile.append = failing(DataFile.append)
    messages = []
    for format in ("hf", "dcp"):
        n_written = 0
        with pytest.raises(WeightsError) as refused:
            engine.save(folder / format, format)
        messages.append(str(refused.value))
    train(engine)
    return messages


def test_a_disk_that_fills_up_is_told_on_every_rank_and_none_is_left_waiting(tmp_path):
    for messages in run_world(full_disk, 2, (tmp_path,), time_limit=30):
        assert all("cannot write it" in text and "No space left on device" in text for text in messages)


def fail_between_others(folder, broken):
    engine = make_engine("d2")
    if engine.data_ranks.everyone.rank == broken:

        def fail(*_):
            raise MemoryError(f"rank {broken} has none left")

        hf_saving.assemble_hf = hf_saving.send_shards = fail
    engine.save(folder / str(broken), "hf")


@pytest.mark.parametrize("broken", [0, 1], ids=["the one that writes", "one that sends"])
def test_a_rank_that_others_wait_for_ends_when_it_fails_instead_of_waiting_for_them(tmp_path, broken):
    with pytest.raises(WorldError, match=f"MemoryError: rank {broken} has none left"):
        run_world(fail_between_others, 2, (tmp_path, broken), time_limit=30)


def test_the_seal_names_every_file_with_its_size(checkpoint):
    folder, _ = checkpoint
    for format, own in (("dcp", set()), ("hf", {"config.json"})):
        path = Path(folder / "whole" / format)
        files = json.loads((path / "checksums.json").read_text())["files"]
        assert {name: entry["size"] for name, entry in files.items()} == {
            file.name: file.stat().st_size for file in path.iterdir() if file.name not in {"checksums.json", *own}
        }


N_STEPS = 3
"""Training steps, each with its all-reduces, between the moment of a save and its first byte."""


def save_beside_training(layout, folder):
    """The weights at the time of two saves and what each checkpoint holds; the weights at the end."""
    engine = make_engine(layout, dtype="float64")
    ranks = Ranks.of_process_group()
    apart = ranks.apart()
    write_data = TensorWriter.write_data
    times, found = [], []
    for number in range(2):  # the second one reuses the host copies of the first
        trained = threading.Event()

        def write_late(*arguments, trained=trained):
            assert trained.wait(60)
            return write_data(*arguments)

        TensorWriter.write_data = write_late
        train(engine)
        times.append(whole(engine))
        staged = engine.stage()
        thread = threading.Thread(target=staged.write, args=(folder / str(number), apart))
        thread.start()
        for _ in range(N_STEPS):
            train(engine)
        trained.set()
        train(engine)
        thread.join()
    end = whole(engine)
    for number in range(2):
        engine.load(folder / str(number), "dcp")
        found.append((engine.version, whole(engine)))
    return times, found, end


@pytest.mark.parametrize(("layout", "n_ranks"), [("d1", 1), pytest.param("d2t2", 4, marks=pytest.mark.wide)])
def test_a_staged_state_holds_the_weights_of_its_time_and_changes_nothing(tmp_path, layout, n_ranks):
    straight = make_engine("d1", dtype="float64")
    expected = []
    for _ in range(2 * (N_STEPS + 2)):
        train(straight)
        expected.append(whole(straight))
    for times, found, end in run_world(save_beside_training, n_ranks, (layout, tmp_path)):
        assert [version for version, _ in found] == [1, N_STEPS + 3]
        for at_the_time, (version, loaded) in zip(times, found, strict=True):
            assert all(torch.equal(loaded[name], weight) for name, weight in at_the_time.items())
            assert_close(loaded, expected[version - 1])
        assert_close(end, expected[-1])


def assert_close(found, expected):
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-9 * float(weight.abs().max()))
