"""Checkpoints of a run: written in turn or beside training, kept or removed, damaged."""

from __future__ import annotations

import threading

import pytest
import torch
from bigram_engine import BigramEngine, StagedTable
from run_results import rows, table

from archon_core.errors import DamagedError, WeightsError
from archon_engine.checkpoint import publication
from archon_train.run.folder import RunFolder

ASYNC = "trainer.async_save=true"


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_saving_beside_training_changes_no_number(run, n_ranks):
    layout = f"actor.backend=bigram:d{n_ranks}"
    expected = run(layout, "trial_name=in_turn", ranks=n_ranks)
    found = run(layout, ASYNC, "trial_name=beside", ranks=n_ranks)
    assert rows(found) == rows(expected)
    assert found.checkpoint_steps() == expected.checkpoint_steps() == [3, 6]
    for name in ("dcp/table.pt", "trainer.json"):
        for step in (3, 6):
            files = [folder.checkpoint_path(step) / name for folder in (found, expected)]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_steps_go_by_while_a_checkpoint_is_written_and_it_holds_the_weights_of_its_own_step(run, monkeypatch):
    trained, steps, write = threading.Event(), [], StagedTable.write

    def write_late(self, folder, ranks):
        assert trained.wait(60)
        write(self, folder, ranks)

    train_batch = BigramEngine.train_batch

    def train(self, batch, loss):
        stats = train_batch(self, batch, loss)
        steps.append(RunFolder.latest_step(run.folder()))
        if len(steps) == 5:
            trained.set()
        return stats

    monkeypatch.setattr(StagedTable, "write", write_late)
    monkeypatch.setattr(BigramEngine, "train_batch", train)
    folder = run(ASYNC)
    assert steps[:5] == [None] * 5  # steps 4 and 5 were done before the checkpoint of step 3 was there
    alone = run("trainer.max_steps=6", "trial_name=alone")
    saved, expected = (torch.load(f.checkpoint_path(3) / "dcp" / "table.pt") for f in (folder, alone))
    assert torch.equal(saved, expected)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_write_that_fails_in_the_background_is_raised_on_every_rank(run, monkeypatch, n_ranks):
    write, raised = StagedTable.write, []

    def fail_once(self, folder, ranks):
        write(self, folder, ranks)
        if self.version == 3:
            # As the engine does: it fails on all ranks or on none.
            raised.append(ranks.rank)
            raise WeightsError(f"training state {folder}: cannot write it (disk full)")

    monkeypatch.setattr(StagedTable, "write", fail_once)
    with pytest.raises(WeightsError, match="cannot write it"):
        run(ASYNC, f"actor.backend=bigram:d{n_ranks}", ranks=n_ranks)
    assert sorted(raised) == list(range(n_ranks))
    assert list(run.folder().checkpoints.iterdir()) == []
    monkeypatch.undo()
    run(ASYNC, "trainer.auto_resume=true", "trial_name=again")


def test_a_folder_that_cannot_be_published_is_an_error_on_every_rank(run, monkeypatch):
    flush = publication._flush_tree

    def full(path):
        if "step" in path.name:
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(publication, "_flush_tree", full)
    with pytest.raises(WeightsError, match=r"cannot write it .*No space left"):
        run(ASYNC, "actor.backend=bigram:d2", "trainer.save_every=1", ranks=2)
    with pytest.raises(WeightsError, match=r"cannot write it .*No space left"):
        run("actor.backend=bigram:d2", "trial_name=in_turn", ranks=2)
    assert run.folder().checkpoint_steps() == run.folder("in_turn").checkpoint_steps() == []


def test_a_run_that_is_stopped_waits_for_its_checkpoint(run):
    with pytest.raises(KeyboardInterrupt):
        run(ASYNC, "trainer.save_every=1", stop_after=2)
    assert run.folder().checkpoint_steps() == [1, 2]
    resumed = run(ASYNC, "trainer.save_every=1", "trainer.resume=true")
    whole = run("trial_name=whole")
    assert rows(resumed) == rows(whole)
    torch.testing.assert_close(table(resumed), table(whole), rtol=0, atol=0)


@pytest.mark.parametrize("save", [(), (ASYNC,)], ids=["in turn", "beside"])
def test_superseded_checkpoints_are_removed_when_a_new_one_is_there(run, monkeypatch, save):
    there, remove = [], RunFolder.remove_superseded

    def look(self, **options):
        there.append(self.checkpoint_steps())
        return remove(self, **options)

    monkeypatch.setattr(RunFolder, "remove_superseded", look)
    folder = run(*save, "trainer.save_every=1", "trainer.keep_last=2", "trainer.keep_every=3")
    assert there == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [3, 4, 5, 6]]
    assert sorted(entry.name for entry in folder.checkpoints.iterdir()) == [f"step-{step:08d}" for step in (3, 5, 6)]


def test_a_damaged_checkpoint_is_an_error_with_advice_and_is_never_skipped_silently(run):
    with pytest.raises(KeyboardInterrupt):
        run("trainer.save_every=1", stop_after=2)
    last = run.folder().checkpoint_path(2)
    text = (last / "trainer.json").read_text()
    (last / "trainer.json").write_text(text.replace('"position": 8', '"position": 9'))
    with pytest.raises(DamagedError, match=r"trainer\.json: found damage: bytes") as refused:
        run("trainer.resume=true", "actor.backend=bigram:d2", ranks=2)
    assert refused.value.__notes__ == [
        f"to resume from the previous checkpoint, if there is one, move {last} away and run again"
    ]
    last.rename(last.with_name("damaged"))
    before = run.folder().checkpoint_path(1)
    (before / "checksums.json").unlink()
    resumed = run("trainer.resume=true")
    [unchecked] = [found for found in run.context.decisions if found.effective == "not checked for damage"]
    assert unchecked.requested == f"{before / 'trainer.json'}, checked"
    assert rows(resumed) == rows(run("trial_name=whole"))
