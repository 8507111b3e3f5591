"""A run that is killed while it saves continues from a whole checkpoint, at whatever moment it dies.

One process has the engine ready; the runs that die are forked from it, and die by SIGKILL. Afterwards the run folder is
opened as a resumed run opens it: there is a checkpoint, it has the weights of its step, and nothing
is left of the checkpoint that was being written.
"""

import os
import random
import signal
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint import dcp_storage
from archon_engine.checkpoint.data_file import DataFile
from archon_engine.checkpoint.dcp_storage import TensorWriter
from archon_rl.datasets.cursor import DataCursor
from archon_rl.trainer.checkpointing import Checkpoints, load_checkpoint
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import WorldError, run_world
from archon_train.experiment import TrainerConfig
from archon_train.run import folder as run_folder
from archon_train.run.folder import RunFolder

N_RANDOM = 4
"""Random moments; ``soak`` has ten times as many."""
FIRST, LAST = 1, 4
"""The steps that a run saves after. The first checkpoint is whole before anything dies."""
CURSOR = DataCursor(16, 2, seed=1)


def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(owner, name, *, when=lambda *_: True):
    """Let the process die when ``name`` is called and ``when`` agrees."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: die() if when(*a) else original(*a, **k))


def dying_after(owner, name, *, when=lambda *_: True):
    original = getattr(owner, name)

    def then_die(*arguments, **options):
        original(*arguments, **options)
        if when(*arguments):
            die()

    setattr(owner, name, then_die)


def dying_in_the_middle_of_a_tensor():
    def write_half(self, content):
        self._file.write(content[: content.numel() // 2].numpy().data)
        self._file.flush()
        if self._place > 10_000:
            die()

    DataFile._write_region = write_half


def is_publishing(path, *_):
    return path.name.endswith(".writing")


POINTS = {
    "before data": lambda: dying_before(TensorWriter, "write_data"),
    "mid-data": dying_in_the_middle_of_a_tensor,
    "before metadata": lambda: dying_before(TensorWriter, "finish"),
    "before checksums": lambda: dying_before(dcp_storage, "write_seal"),
    "before rename": lambda: dying_before(Path, "rename", when=is_publishing),
    "after rename": lambda: dying_after(Path, "rename", when=is_publishing),
    "while the old one is removed": lambda: dying_after(Path, "rename", when=lambda path, *_: is_superseded(path)),
    "before the old one is removed": lambda: dying_before(run_folder, "remove_folder"),
}


def is_superseded(path):
    return path.name == f"step-{FIRST:08d}"


def make_engine(layout="d1"):
    config = load_target(registry().get("model", "qwen3").tiny_config)()
    engine = assemble(
        EngineConfig(model_config=config, dtype="float32", optimizer=OptimizerConfig(type="adamw", lr=1e-2)),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
    )
    engine.initialize()
    return engine


def train(engine):
    """One step, on tokens that depend on the step."""
    generator = torch.Generator().manual_seed(engine.version)
    rows = [torch.randint(0, 128, (n,), generator=generator) for n in (4, 9, 3, 6)]
    batch, ranks = Batch.from_sequences(rows), engine.data_ranks
    engine.train_batch(batch.select(range(ranks.rank, len(batch), ranks.size)), NegativeLogLikelihood())


def whole(engine):
    with torch.no_grad():
        return {name: getattr(p, "full_tensor", lambda p=p: p)().clone() for name, p in engine.parameters.items()}


def open_run(root, *, resume, is_async=False, keep_last=1, ranks=None):
    ranks = ranks or Ranks()
    if ranks.is_first:
        RunFolder.open(root, "e", "t", resume=resume)
    config = SimpleNamespace(trainer=TrainerConfig(async_save=is_async, keep_last=keep_last))
    return SimpleNamespace(folder=RunFolder.at(root, "e", "t"), config=config, ranks=ranks)


def save_from(engine, run, step, last=LAST):
    """Train and save after every step to the last one."""
    checkpoints = Checkpoints(run, engine, CURSOR)
    while step < last:
        train(engine)
        step += 1
        checkpoints.poll()
        checkpoints.save(step, {})
    checkpoints.finish()


def fork(body):
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def end(child):
    """Wait for it; its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go_on(engine, root, expected):
    """What a resumed run finds: the step, and whether all is as it should be."""
    run = open_run(root, resume=True)
    step = run.folder.latest_step()
    left = [entry.name for entry in run.folder.checkpoints.iterdir() if entry.name.startswith(".")]
    state = load_checkpoint(run, run.folder.latest_checkpoint(), engine, CURSOR)
    assert (state.step, engine.version, left) == (step, step, [])
    assert all(torch.equal(weight, expected[step][name]) for name, weight in whole(engine).items())
    save_from(engine, run, step, step + 1)  # nothing that is left hinders the next one
    assert all(torch.equal(weight, expected[step + 1][name]) for name, weight in whole(engine).items())
    assert run.folder.checkpoint_steps() == [step + 1]
    return step


def killed_runs(root, is_async, n_random):
    """The step that each killed run goes on from, by its moment."""
    engine = make_engine()
    train(engine)
    engine.save(root / "start", "dcp")
    expected = {FIRST: whole(engine)}
    for step in range(FIRST + 1, LAST + 2):
        train(engine)
        expected[step] = whole(engine)

    def start(place, prepare=lambda: None):
        """A run with its first checkpoint, and a process that goes on with it."""
        engine.load(root / "start", "dcp")
        run = open_run(place, resume=False, is_async=is_async)
        checkpoints = Checkpoints(run, engine, CURSOR)
        checkpoints.save(FIRST, {})
        checkpoints.finish()
        return fork(lambda: (prepare(), save_from(engine, run, FIRST)))

    began = time.monotonic()
    assert end(start(root / "whole")) == 0
    duration, found, draw = time.monotonic() - began, {}, random.Random(is_async)
    for number in range(n_random):
        place = root / f"random {number}"
        child = start(place)
        time.sleep(draw.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        assert end(child) in (0, -signal.SIGKILL)
        found[place.name] = go_on(engine, place, expected)
    for name, prepare in POINTS.items():
        assert end(start(root / name, prepare)) == -signal.SIGKILL, name
        found[name] = go_on(engine, root / name, expected)
    return found


@pytest.mark.parametrize(
    ("is_async", "n_random"),
    [
        pytest.param(False, N_RANDOM, marks=pytest.mark.wide, id="in turn"),
        pytest.param(True, N_RANDOM, id="in the background"),
        pytest.param(False, 10 * N_RANDOM, marks=pytest.mark.soak, id="often, in turn"),
        pytest.param(True, 10 * N_RANDOM, marks=pytest.mark.soak, id="often, in the background"),
    ],
)
def test_a_run_that_is_killed_goes_on_from_a_whole_checkpoint(tmp_path, is_async, n_random):
    [found] = run_world(killed_runs, 1, (tmp_path, is_async, n_random), time_limit=300)
    assert len(found) == n_random + len(POINTS)
    late = {"after rename", "while the old one is removed", "before the old one is removed"}
    assert {name: found[name] for name in POINTS} == {name: FIRST + (name in late) for name in POINTS}


def save_and_lose_a_rank(root, is_async):
    ranks = Ranks.of_process_group()
    engine = make_engine("d2")
    run = open_run(root, resume=False, is_async=is_async, keep_last=None, ranks=ranks)
    checkpoints = Checkpoints(run, engine, CURSOR)
    train(engine)
    checkpoints.save(1, {})
    checkpoints.finish()
    train(engine)
    if ranks.rank == 1:
        dying_in_the_middle_of_a_tensor()
    checkpoints.save(2, {})
    checkpoints.finish()


def resume_together(root):
    ranks = Ranks.of_process_group()
    engine = make_engine("d2")
    run = open_run(root, resume=True, ranks=ranks)
    ranks.barrier()
    state = load_checkpoint(run, run.folder.latest_checkpoint(), engine, CURSOR)
    Checkpoints(run, engine, CURSOR).save(2, {})
    return state.step, run.folder.checkpoint_steps()


@pytest.mark.parametrize("is_async", [False, True], ids=["in turn", "in the background"])
def test_a_rank_that_is_killed_while_all_save_leaves_the_checkpoint_before(tmp_path, is_async):
    with pytest.raises(WorldError, match="SIGKILL"):
        run_world(save_and_lose_a_rank, 2, (tmp_path, is_async))
    assert run_world(resume_together, 2, (tmp_path,)) == [(1, [2])] * 2
