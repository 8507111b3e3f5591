"""``archon convert``: the same bits in the other format, whatever layout wrote them, with memory for one tensor."""

import ctypes
import shlex
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.cli.main import main
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError, ConfigError, DamagedError, WeightsError
from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf, find_state
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

MODELS = {
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}, False),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False}, False),
    "qwen3 critic": ("qwen3", {}, True),
}
WEIGHTS = "model.safetensors"


def make_engine(layout, model, *, path=None, dtype="float32"):
    family, changes, critic = MODELS[model]
    config = None if path else {**load_target(registry().get("model", family).tiny_config)(), **changes}
    engine = assemble(
        EngineConfig(
            path=path and str(path),
            model_config=config,
            dtype=dtype,
            is_critic=critic,
            optimizer=OptimizerConfig(type="adamw", lr=1e-2),
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def train(engine):
    ranks = engine.data_ranks
    batch = Batch.from_sequences([torch.arange(n) for n in (4, 9, 3, 6)])
    return engine.train_batch(batch.select(range(ranks.rank, len(batch), ranks.size)), NegativeLogLikelihood()).loss


def write(layout, folder):
    for model in MODELS:
        engine = make_engine(layout, model)
        if not MODELS[model][2]:
            train(engine)
        engine.save(folder / model / "checkpoints" / "step-00000001" / "dcp", "dcp")
        engine.save(folder / model / "hf", "hf")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Per model a folder like a run's, with a training state of four ranks, and what these saved as Hugging Face's."""
    folder = tmp_path_factory.mktemp("runs")
    run_world(write, 4, ("d2t2", folder))
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_a_training_state_becomes_the_folder_that_the_engine_would_have_saved(runs, tmp_path, model):
    assert convert_to_hf(runs / model, tmp_path / "hf") == runs / model / "checkpoints" / "step-00000001" / "dcp"
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (runs / model / "hf" / name).read_bytes()
    if not MODELS[model][2]:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
        stored = load_file(tmp_path / "hf" / WEIGHTS)
        assert all(torch.equal(theirs[name], value) for name, value in stored.items())


@pytest.mark.parametrize("model", MODELS)
def test_a_hugging_face_folder_becomes_a_training_state_of_no_steps(runs, tmp_path, model):
    convert_to_dcp(runs / model / "hf", tmp_path / "dcp")
    loaded, expected = make_engine("d1", model), make_engine("d1", model, path=runs / model / "hf")
    loaded.load(tmp_path / "dcp", "dcp")
    assert loaded.version == 0
    for name, parameter in expected.parameters.items():
        assert torch.equal(loaded.parameters[name], parameter)
    if not MODELS[model][2]:
        assert [train(loaded) for _ in range(2)] == [train(expected) for _ in range(2)]
    convert_to_hf(tmp_path / "dcp", tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (runs / model / "hf" / WEIGHTS).read_bytes()


def archon(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_the_command_converts_copies_the_tokenizer_and_stores_another_type_when_asked(runs, tmp_path, capsys):
    run = runs / "qwen3 tied"
    (run / "tokenizer").mkdir(exist_ok=True)
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    step = run / "checkpoints" / "step-00000001"
    assert archon("convert", step, tmp_path / "hf", "--to", "hf", "--dtype", "bfloat16") == 0
    assert capsys.readouterr().err.replace("\n", "") == f"converted: {step / 'dcp'} -> {tmp_path / 'hf'} (hf)"
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == "{}"
    stored, original = load_file(tmp_path / "hf" / WEIGHTS), load_file(run / "hf" / WEIGHTS)
    assert all(torch.equal(value, original[name].bfloat16()) for name, value in stored.items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16
    assert archon("convert", run / "hf", tmp_path / "dcp", "--to", "dcp") == 0
    assert archon("convert", run / "hf", tmp_path / "dcp", "--to", "dcp") == 2


def test_the_commands_of_the_documentation_run_as_they_are_written(runs, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in dict.fromkeys(page.splitlines()) if line.startswith("archon convert ")]
    assert [command[5] for command in commands] == ["hf", "hf", "dcp"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "qwen3 tied", "runs/arithmetic/grpo")
    Path("runs/arithmetic/grpo/checkpoints/step-00000001").rename("runs/arithmetic/grpo/checkpoints/step-00000100")
    for _, *arguments in commands:
        assert archon(*arguments) == 0
        assert any(Path(arguments[2]).iterdir())


def test_of_a_run_the_last_checkpoint_is_taken_and_none_that_was_moved_away(runs, tmp_path):
    shutil.copytree(runs / "qwen3 tied" / "checkpoints", tmp_path / "checkpoints")
    first = tmp_path / "checkpoints" / "step-00000001"
    shutil.copytree(first, tmp_path / "checkpoints" / "step-00000002")
    shutil.copytree(first, tmp_path / "checkpoints" / "step-00000003.damaged")
    assert find_state(tmp_path) == tmp_path / "checkpoints" / "step-00000002" / "dcp"


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(runs, tmp_path):
    run, out = runs / "qwen3 tied", tmp_path / "out"
    state = run / "checkpoints" / "step-00000001" / "dcp"

    def refused(kind: type[ArchonError], text, convert, *arguments, **options):
        with pytest.raises(kind, match=text):
            convert(*arguments, **options)
        assert not out.exists()

    refused(ConfigError, "found no training state", convert_to_hf, tmp_path, out)
    refused(ArchonError, r"found no config\.json", convert_to_dcp, tmp_path, out)
    other = runs / "qwen2 untied" / "hf"
    refused(WeightsError, "does not fit the model:\n  missing ", convert_to_hf, state, out, config=str(other))
    damaged = copy_of(state, tmp_path / "damaged")
    data = bytearray((damaged / "__1_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "__1_0.distcp").write_bytes(data)
    refused(DamagedError, r"__1_0\.distcp: found damage", convert_to_hf, damaged, out)
    (damaged / "checksums.json").unlink()
    refused(WeightsError, r"found no checksums\.json", convert_to_hf, damaged, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for convert, source in ((convert_to_hf, state), (convert_to_dcp, run / "hf")):
        refused(ConfigError, "found a file, or a folder that is not empty", convert, source, tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]


def copy_of(folder, place):
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


MEBIBYTE = 2**20
M_MMAP_THRESHOLD = -3  # of malloc.h


def memory_for_converting(folder):
    """Bytes by which a process's own memory rises at most, in both directions."""
    # A fixed threshold, above which glibc returns freed memory at once; otherwise it keeps up to half a tensor. The
    # variable only reaches a new process, not a forked one.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MEBIBYTE) == 1
    sizes = {"vocab_size": 2**14, "hidden_size": 2**10, "num_hidden_layers": 1, "intermediate_size": 2**12}
    MODELS["large"] = ("qwen3", {**sizes, "tie_word_embeddings": False}, False)
    make_engine("d1", "large").save(folder / "dcp", "dcp")
    rises = []
    for convert, source, destination in ((convert_to_hf, "dcp", "hf"), (convert_to_dcp, "hf", "back")):
        before, sizes, ended = own_memory(), [], threading.Event()

        def watch(sizes=sizes, ended=ended):
            while not ended.wait(0.001):
                sizes.append(own_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        convert(folder / source, folder / destination)
        ended.set()
        watcher.join()
        rises.append(max(sizes) - before)
    return rises


def own_memory():
    """Without mapped files, which the system takes back when it needs their place."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' /proc")
def test_converting_takes_memory_for_a_tensor_not_for_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(MEBIBYTE))  # with it, the engine leaves glibc's settings alone
    [rises] = run_world(memory_for_converting, 1, (tmp_path,))
    tensor, model = 64 * MEBIBYTE, (tmp_path / "hf" / WEIGHTS).stat().st_size
    assert model > 2.5 * tensor
    assert all(0.5 * tensor < rise < 1.5 * tensor for rise in rises), [rise / tensor for rise in rises]
