"""Which checkpoints may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_train.run.folder import RunFolder, superseded


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [
        (None, None, []),
        (1, None, [10, 20, 30, 40]),
        (2, None, [10, 20, 30]),
        (5, None, []),
        (9, None, []),
        (1, 20, [10, 30]),
        (2, 30, [10, 20]),
        (1, 7, [10, 20, 30, 40]),
    ],
)
def test_the_last_ones_and_the_divisible_ones_are_kept(keep_last, keep_every, expected):
    assert superseded([30, 10, 50, 20, 40], keep_last=keep_last, keep_every=keep_every) == expected


@given(st.sets(st.integers(1, 60)), st.none() | st.integers(1, 8), st.none() | st.integers(1, 8))
def test_what_goes_is_neither_last_nor_divisible(steps, keep_last, keep_every):
    going = superseded(steps, keep_last=keep_last, keep_every=keep_every)
    kept = steps - set(going)
    assert len(kept) >= min(len(steps), keep_last or len(steps))
    assert max(steps, default=None) == max(kept, default=None)
    assert all(step < other for step in going for other in sorted(steps)[-(keep_last or 1) :])
    assert keep_every is None or not any(step % keep_every == 0 for step in going)
    # Removing again removes nothing more.
    assert superseded(kept, keep_last=keep_last, keep_every=keep_every) == []


def test_a_run_that_died_while_it_removed_or_wrote_a_text_leaves_nothing_behind(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    with folder.writing(2) as path:
        (path / "weights").write_text("whole")
    (folder.checkpoints / ".step-00000001.removed").mkdir()
    (folder.checkpoints / ".step-00000001.removed" / "weights").write_text("half of them")
    folder.config.with_name(".config.yaml.writing").write_text("half of it")
    again = RunFolder.open(tmp_path, "e", "t", resume=True)
    assert [entry.name for entry in again.checkpoints.iterdir()] == ["step-00000002"]
    assert sorted(entry.name for entry in again.path.iterdir()) == ["checkpoints"]


def test_superseded_checkpoints_leave_the_folder(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    for step in (1, 2, 3, 4):
        with folder.writing(step) as path:
            (path / "weights").write_text(str(step))
    assert folder.remove_superseded(keep_last=1, keep_every=2) == [1, 3]
    assert sorted(entry.name for entry in folder.checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
